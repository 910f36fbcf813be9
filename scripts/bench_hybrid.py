"""What the hybrid engine costs: per edit, per token and per question, with few edits and with many.

    python scripts/bench_hybrid.py --model FOLDER --data edits.jsonl
    python scripts/bench_hybrid.py

A memory of N edits is made of real ones: values and keys of the records given, each repeated with a little noise and
with a subject of its own. So keys gather as they do in use.

Editing. CPU seconds per edit with nothing live and beside up to 10,000 edits: of many given at once, and of one given
alone, the median of several. *First* is the one that finds the live edits unread, as after they were loaded.

Serving. What is read is running text that asks for none of them. Bare and wrapped model are two loads of the same one,
timed in turn, next to each other; what is told is the median of the ratios of the pairs. *Prefill* is one pass over a
prompt, *decode* one token against the cache of the tokens before. *Decide* is milliseconds until the router knows which
edit a new question means that names a live subject: mostly the sentence encoder's, and spent once for a question. With
one thread it is the thread's own CPU time that is told, into which other work on the machine hardly enters.

Two tables go to stdout; the last line is one JSON object of the same figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import wise
from wise import Record, WiseConfig, WiseModel, read_records
from wise.demo import model_path
from wise.demo.records import demo_records
from wise.lab.eval.routing.texts import shipped_passages
from wise.memory.slot import AnswerSlot
from wise.memory.state import MemoryState
from wise.router.hybrid import HybridRouter

SIZES = (100, 10_000, 100_000)
BATCH = 64
LONE = 5
MOST_EDITED = 10_000
"""Edits beside which others are made: to read them takes a few milliseconds each."""
QUESTIONS = 20
"""New questions that the router is asked."""
PROMPT_TOKENS, DECODED_TOKENS = 128, 16
JITTER = 0.05
"""Noise on a repeated key, per coordinate, times the square root of their number."""

Clock = Callable[[], float]


def edit_costs(model: WiseModel, state: MemoryState, records: Sequence[Record], count: int) -> dict[str, float]:
    """CPU seconds per edit beside the edits of `state`: of the first, of a batch of so many, and of one alone."""
    first, *others = [record.edit for record in records]
    spent = []
    for edits in ([first], others[:count], *([edit] for edit in others[count:])):
        begun = time.process_time()
        model.trainer.edit(state, edits, serve=model.serving)
        spent.append((time.process_time() - begun) / len(edits))
    return {"edits": len(state.edits), "first": spent[0], "batch": spent[1], "alone": statistics.median(spent[2:])}


def multiplied(state: MemoryState, count: int) -> MemoryState:
    """`count` edits, made of those of `state`."""
    g = torch.Generator().manual_seed(0)
    edits, slots, keys = [], [], {}
    for i in range(count):
        source, slot = state.edits[i % len(state.edits)], state.slots[i % len(state.slots)]
        if not isinstance(slot, AnswerSlot):
            raise ValueError("the memory is not of mode hybrid")
        own = state.keys[source.id].float()
        noise = JITTER * own.shape[1] ** -0.5 * torch.randn(own.shape, generator=g)
        name, subject = f"{i:06}", f"{source.subject or 'item'} {i:06}"
        prompt = source.prompt.replace(source.subject, subject) if source.subject else f"{subject}: {source.prompt}"
        edits.append(replace(source, id=name, prompt=prompt, subject=subject, aliases=(), messages=(), paraphrases=()))
        slots.append(replace(slot, id=i, edit_ids=(name,)))
        keys[name] = normalize(own + noise, dim=-1).half()
    return replace(state, edits=tuple(edits), slots=tuple(slots), keys=keys)


@torch.no_grad()
def serve_once(model: PreTrainedModel, ids: torch.Tensor, clock: Clock) -> tuple[float, float]:
    """Seconds of one prefill, and the median seconds of a decoded token after it; ids `[1, prompt + decoded]`."""
    prompt, rest = ids[:, :PROMPT_TOKENS], ids[:, PROMPT_TOKENS:]
    begun = clock()
    read = model(prompt, use_cache=True, logits_to_keep=1)
    prefill = clock() - begun
    name = "cache" if "cache" in read else "past_key_values"  # before transformers 5.24
    steps = []
    for token in rest.chunk(DECODED_TOKENS, dim=1):
        begun = clock()
        model(token, use_cache=True, **{name: read[name]})
        steps.append(clock() - begun)
    return prefill, statistics.median(steps)


def overhead(
    wrapped: WiseModel, bare: PreTrainedModel, state: MemoryState, texts: Sequence[torch.Tensor], clock: Clock
) -> dict[str, float]:
    """Ratios of wrapped to bare, and what was timed; texts: `[1, prompt + decoded]` each."""
    begun = time.process_time()
    with wrapped.serving(state) as served:
        assembled = time.process_time() - begun
        pairs = []
        for number, ids in enumerate([texts[0], *texts]):
            order = (served, bare) if number % 2 else (bare, served)  # who goes first changes
            pairs.append({model is served: serve_once(model, ids, clock) for model in order})
    del pairs[0]  # the first pass allocates
    prefill, decode = (statistics.median(pair[True][i] / pair[False][i] for pair in pairs) for i in (0, 1))
    return {
        "edits": len(state.edits),
        "assemble_seconds": assembled,
        "prefill": prefill,
        "decode": decode,
        "bare_prefill_milliseconds": 1000 * statistics.median(pair[False][0] for pair in pairs),
        "bare_decode_milliseconds": 1000 * statistics.median(pair[False][1] for pair in pairs),
    }


def decide_milliseconds(wrapped: WiseModel, state: MemoryState, clock: Clock) -> float | None:
    """Median of several new questions that name a live subject; None where none is live."""
    if not state.edits or wrapped.inputs is None:
        return None
    router = HybridRouter(state, wrapped.inputs)
    spent = []
    for number, edit in enumerate(state.edits[i * len(state.edits) // QUESTIONS] for i in range(QUESTIONS)):
        begun = clock()
        router.decide(f"Question {number}: {edit.prompt}")
        spent.append(clock() - begun)
    return 1000 * statistics.median(spent)


def running_text(model: WiseModel, count: int) -> list[torch.Tensor]:
    """Passages that ship with wise, as rows of ids `[1, prompt + decoded]`, one after another."""
    ids = [i for passage in shipped_passages() for i in model.encoder.prompt(passage)]
    size = PROMPT_TOKENS + DECODED_TOKENS
    return [torch.tensor([(ids * count)[start * size : (start + 1) * size]]) for start in range(count)]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=model_path(), help="folder of the model (the shipped one)")
    parser.add_argument("--data", type=Path, help="file of records (counterfactuals for the shipped model)")
    parser.add_argument("--relations", help="file of `wise train-router` (what ships with wise)")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"edits given at once ({BATCH})")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="edits of the memories that are served")
    parser.add_argument("--repeats", type=int, default=40, help="pairs of timings of each memory (40)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    args = parser.parse_args()
    if min(args.repeats, args.threads, args.batch, *args.sizes) < 1:
        parser.error("--batch, --sizes, --repeats and --threads start at 1")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    count = 2 * args.batch + 1 + LONE
    records = read_records(args.data, limit=count) if args.data else demo_records(count, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    models = [AutoModelForCausalLM.from_pretrained(args.model).eval() for _ in range(2)]
    wrapped = wise.wrap(models[0], tokenizer, WiseConfig(mode="hybrid", relations=args.relations))
    wrapped.edit([record.edit for record in records[: args.batch]])
    states = [MemoryState(), *(multiplied(wrapped.state, size) for size in args.sizes)]
    print(f"{'edits':>8} {'first':>9} {f'of {args.batch}':>9} {'alone':>9}   CPU s an edit")
    costs = [
        edit_costs(wrapped, state, records[args.batch :], args.batch)
        for state in states
        if len(state.edits) <= MOST_EDITED
    ]
    for cost in costs:
        print(f"{cost['edits']:8} {cost['first']:9.3f} {cost['batch']:9.3f} {cost['alone']:9.3f}")
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    texts = running_text(wrapped, args.repeats)
    rows = [
        overhead(wrapped, models[1], state, texts, clock)
        | {"decide_milliseconds": decide_milliseconds(wrapped, state, clock)}
        for state in states
    ]
    print(f"bare: {PROMPT_TOKENS} tokens in {rows[0]['bare_prefill_milliseconds']:.1f} ms, then "
          f"{rows[0]['bare_decode_milliseconds']:.2f} ms a token")  # fmt: skip
    print(f"{'edits':>8} {'prefill':>9} {'decode':>9} {'decide, ms':>11} {'assemble, CPU s':>17}")
    for row in rows:
        decide = "-" if row["decide_milliseconds"] is None else f"{row['decide_milliseconds']:.1f}"
        told = f"{row['edits']:8} {row['prefill']:9.3f} {row['decode']:9.3f} {decide:>11}"
        print(f"{told} {row['assemble_seconds']:17.2f}")
    figures = {"threads": args.threads, "repeats": args.repeats, "cpu_seconds_per_edit": costs, "serving": rows}
    print(json.dumps(figures, separators=(",", ":")))


if __name__ == "__main__":
    main()
