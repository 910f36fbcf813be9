"""What wise costs in each mode: CPU seconds per edit, and the time of the wrapped model over the bare one's.

    python scripts/bench_cost.py
    python scripts/bench_cost.py --model FOLDER --data edits.jsonl --modes hybrid --edits 4 --sizes 10000

Editing: CPU seconds of one call of `edit` with all edits, over their number. Measuring the base, which happens once
before the first edit, is shown apart.

Serving: what is read is running text that asks for none of the edits. Bare and wrapped model are two loads of the same
one, timed in turn; the figure is the median of the ratios of the pairs, so that a machine that slows down for a while
slows both. *Prefill* is one pass over a prompt, *decode* one token against the cache of the tokens before. With one
thread it is the thread's own CPU time, into which other work on the machine hardly enters.

`--sizes` serves further memories of `hybrid`, made of the edits: values and keys of each, repeated with a little noise
and a subject of its own, so that keys gather as they do in use. *Decide* is milliseconds until the router knows which
edit a new question means that names a live subject: mostly the sentence encoder's, and spent once for a question.

*Whole step* is what a training step of `hybrid` costs that runs the whole model, over one that runs the upper blocks on
cached states; *whole edit* is the same of whole edits, verification included: the same edits, made again both ways.

A table goes to stdout; its last line is one JSON object of the same figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import wise
from wise import WiseConfig, WiseModel, read_edits
from wise.config import MODES
from wise.demo import model_path
from wise.demo.records import demo_records
from wise.lab.eval.routing.texts import shipped_passages
from wise.memory.slot import AnswerSlot
from wise.memory.state import MemoryState
from wise.router.hybrid import HybridRouter
from wise.training.splice import WHOLE

QUESTIONS = 20
"""New questions that the router is asked."""
PROMPT_TOKENS, DECODED_TOKENS = 128, 16
JITTER = 0.05
"""Noise on a repeated key, per coordinate, times the square root of their number."""
STEPS_TIMED = 5
COLUMNS = (
    "mode", "edits", "base_cpu_seconds", "cpu_seconds_per_edit", "whole_step", "whole_edit", "prefill", "decode",
    "decide_milliseconds",
)  # fmt: skip

Clock = Callable[[], float]


def multiplied(state: MemoryState, count: int) -> MemoryState:
    """`count` edits, made of those of `state`, which is of mode `hybrid`."""
    g = torch.Generator().manual_seed(0)
    edits, slots, keys = [], [], {}
    for i in range(count):
        source, slot = state.edits[i % len(state.edits)], state.slots[i % len(state.slots)]
        if not isinstance(slot, AnswerSlot):
            raise SystemExit("--sizes are of mode hybrid: leave out the other modes, or --sizes")
        edit_keys = state.keys[source.id].float()
        noise = JITTER * edit_keys.shape[1] ** -0.5 * torch.randn(edit_keys.shape, generator=g)
        name, subject = f"{i:06}", f"{source.subject or 'item'} {i:06}"
        prompt = source.prompt.replace(source.subject, subject) if source.subject else f"{subject}: {source.prompt}"
        edits.append(replace(source, id=name, prompt=prompt, subject=subject, aliases=(), messages=(), paraphrases=()))
        slots.append(replace(slot, id=i, edit_ids=(name,)))
        keys[name] = normalize(edit_keys + noise, dim=-1).half()
    return replace(state, edits=tuple(edits), slots=tuple(slots), keys=keys)


@torch.no_grad()
def serve_once(model: PreTrainedModel, ids: torch.Tensor, clock: Clock) -> tuple[float, float]:
    """Seconds of one prefill, and the median seconds of a decoded token after it; ids `[1, prompt + decoded]`."""
    start = clock()
    read = model(ids[:, :PROMPT_TOKENS], use_cache=True, logits_to_keep=1)
    prefill = clock() - start
    name = "cache" if "cache" in read else "past_key_values"  # before transformers 5.24
    steps = []
    for token in ids[:, PROMPT_TOKENS:].chunk(DECODED_TOKENS, dim=1):
        start = clock()
        model(token, use_cache=True, **{name: read[name]})
        steps.append(clock() - start)
    return prefill, statistics.median(steps)


def served(
    wrapped: WiseModel, bare: PreTrainedModel, state: MemoryState, texts: Sequence[torch.Tensor], clock: Clock
) -> dict[str, Any]:
    """Ratios of wrapped to bare with the edits of `state` live; texts: `[1, prompt + decoded]` each."""
    with wrapped.serving(state) as model:
        pairs = []
        for number, ids in enumerate([texts[0], *texts]):
            order = (model, bare) if number % 2 else (bare, model)  # who goes first changes
            pairs.append({each is model: serve_once(each, ids, clock) for each in order})
    del pairs[0]  # the first pass allocates
    prefill, decode = (statistics.median(pair[True][i] / pair[False][i] for pair in pairs) for i in (0, 1))
    return {
        "prefill": prefill,
        "decode": decode,
        "decide_milliseconds": decide_milliseconds(wrapped, state, clock),
        "bare_prefill_milliseconds": 1000 * statistics.median(pair[False][0] for pair in pairs),
        "bare_decode_milliseconds": 1000 * statistics.median(pair[False][1] for pair in pairs),
    }


def decide_milliseconds(wrapped: WiseModel, state: MemoryState, clock: Clock) -> float | None:
    """Median over new questions that name a live subject; None where none is live, or the mode decides by token."""
    if not state.edits or wrapped.inputs is None:
        return None
    router = HybridRouter(state, wrapped.inputs)
    spent = []
    for number, edit in enumerate(state.edits[i * len(state.edits) // QUESTIONS] for i in range(QUESTIONS)):
        start = clock()
        router.decide(f"Question {number}: {edit.prompt}")
        spent.append(clock() - start)
    return 1000 * statistics.median(spent)


def whole_step(model: WiseModel, edits: Sequence[wise.Edit], clock: Clock) -> float:
    """How much longer a training step takes that runs the whole model, on the same rows in turn."""
    spliced, encoder = model.trainer.spliced, model.encoder
    rows = [(encoder.prompt(edit.prompt), encoder.target(edit.prompt, edit.target)) for edit in edits]
    usual, spent = spliced.steps, dict[str, list[float]]()
    for steps in (usual, WHOLE) * (STEPS_TIMED + 1):
        spliced.use(steps)
        cached = spliced.cache(rows)
        added = torch.zeros(spliced.target_module.out_features, requires_grad=True)
        start = clock()
        spliced.labelled_logits(cached, lambda a, v=added: v.expand(*a.shape[:2], -1)).logsumexp(-1).sum().backward()  # type: ignore[misc]
        spent.setdefault(steps, []).append(clock() - start)
    spliced.use(usual)
    return statistics.median(spent[WHOLE][1:]) / statistics.median(spent[usual][1:])  # the first pass allocates


def whole_edit(model: WiseModel, edits: Sequence[wise.Edit]) -> float:
    """How much longer the same edits take whose training steps run the whole model."""
    before, spliced, spent = model.snapshot(), model.trainer.spliced, dict[str, float]()
    usual = spliced.steps
    for steps in (WHOLE, usual):
        model.reset()
        spliced.use(steps)
        spent[steps] = model.edit(edits).cpu_seconds
    model.rollback(before)
    return spent[WHOLE] / spent[usual]


def running_text(model: WiseModel, count: int) -> list[torch.Tensor]:
    """Passages that ship with wise, as rows of ids `[1, prompt + decoded]`, one after another."""
    ids = [i for passage in shipped_passages() for i in model.encoder.prompt(passage)]
    size = PROMPT_TOKENS + DECODED_TOKENS
    return [torch.tensor([(ids * count)[start * size : (start + 1) * size]]) for start in range(count)]


def measure(mode: str, args: argparse.Namespace, clock: Clock) -> list[dict[str, Any]]:
    """The figures of one mode: without edits, with those that are made, and of the further sizes."""
    edits = read_edits(args.data) if args.data else [r.edit for r in demo_records(args.edits, seed=0)]
    base, bare = (AutoModelForCausalLM.from_pretrained(args.model).eval() for _ in range(2))
    model = wise.wrap(base, AutoTokenizer.from_pretrained(args.model), WiseConfig(mode=mode))
    start = time.process_time()
    model.prepare()
    prepared = time.process_time()
    report = model.edit(edits[: args.edits])
    cost = {"base_cpu_seconds": prepared - start, "cpu_seconds_per_edit": report.cpu_seconds / len(report.outcomes)}
    if mode == "hybrid":
        cost["whole_step"] = whole_step(model, edits[: args.edits], clock)
        cost["whole_edit"] = whole_edit(model, edits[: args.edits])
    texts = running_text(model, args.repeats)
    rows = [{"mode": mode, "edits": 0} | served(model, bare, MemoryState(), texts, clock)]
    rows.append({"mode": mode, "edits": len(model.edits)} | cost | served(model, bare, model.state, texts, clock))
    for size in args.sizes:
        rows.append({"mode": mode, "edits": size} | served(model, bare, multiplied(model.state, size), texts, clock))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=model_path(), help="folder of the model (the shipped one)")
    parser.add_argument("--data", type=Path, help="file of edits (counterfactuals for the shipped model)")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES, help="modes to measure (all)")
    parser.add_argument("--edits", type=int, default=16, help="edits to make (16)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[], help="edits of further memories of hybrid")
    parser.add_argument("--repeats", type=int, default=20, help="pairs of timings of each memory (20)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    args = parser.parse_args()
    if min(args.edits, args.repeats, args.threads, *args.sizes) < 1:
        parser.error("--edits, --sizes, --repeats and --threads start at 1")
    torch.set_num_threads(args.threads)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    rows = [row for mode in args.modes for row in measure(mode, args, clock)]
    print(" ".join(f"{name:>20}" for name in COLUMNS))
    for row in rows:
        cells = (row.get(name) for name in COLUMNS)
        print(" ".join(f"{'-' if v is None else f'{v:.3f}' if isinstance(v, float) else v:>20}" for v in cells))
    print(json.dumps({"model": args.model.name, "threads": args.threads, "repeats": args.repeats, "rows": rows}))


if __name__ == "__main__":
    main()
