"""What wise costs: CPU seconds per edit, and how much slower the wrapped model is than the bare one.

    python scripts/bench_edit.py
    python scripts/bench_edit.py --model FOLDER --data edits.jsonl --edits 100

Editing. CPU seconds (user and system, all threads of the process) of `WiseModel.edit`, over the edits given to it,
in each mode. Measuring the base, which happens once before the first edit, is told apart.

Serving. Two costs, because a model is served in two ways. *Prefill* reads a whole prompt in one pass: many tokens
share every weight that is loaded, so arithmetic is what counts. *Decode* reads one token per pass, against the cache
of the tokens before: loading weights and launching operators is what counts, and a side memory adds a few small
operators to each pass. Wrapped and bare model are the same object, with one module changed; they are timed in turn,
next to each other, and what is told is the median of the ratios of the pairs, so that a machine that slows down for
a while slows both. 1.05 is five per cent slower. With one thread it is the thread's own CPU time that is told, into
which other work on the machine hardly enters; with more it is wall time.

The memories are made up: random weights, and thresholds that nothing reaches, so every token keeps to the base and
all that is timed is finding that out. `retrieve` asks a slot only for a token that is near an edit key, and these are
near none: what unrelated text costs. The rows "all asked" drop that test, so that every token costs its slot's
product as well: the most that the router can cost.

A table goes to stdout; its last line is one JSON object of the same figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wise import Edit, WiseConfig, read_edits, wrap
from wise.architectures import locate
from wise.config import MODES
from wise.demo import model_path
from wise.demo.records import demo_records
from wise.memory.key_space import KeySpace
from wise.memory.layer import SideMemoryLayer
from wise.memory.side_memory import SideMemory
from wise.memory.slot import MaskedDenseSlot
from wise.memory.state import MemoryState
from wise.router.assemble import assemble
from wise.training.writers.masked_dense_statistics import KEY_SIZE

RELEASED_CPU_SECONDS = 2.6
"""Per edit, of the released WISE implementation: one thread, 12 rows per edit, 70 steps, a model of 2.9 million
parameters. Measured elsewhere; this script does not run it."""
PROMPT_TOKENS = 128
DECODED_TOKENS = 16
KEYS_PER_EDIT = 2
"""Positions at which an edit must speak; edits of the shipped model have few more than one."""
UNREACHABLE = 1e9
NEVER_NEAR, ALWAYS_NEAR = 1.0, -1.0
"""Floors of the cosine to an edit key."""

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class EditCost:
    """What one call of `edit` took."""

    mode: str
    edits: int
    verified: int
    cpu_seconds_per_edit: float
    base_cpu_seconds: float
    """Once per wrapped model, before its first edit."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A made-up memory to serve."""

    mode: str
    slots: int
    edits: int
    all_asked: bool = False

    @property
    def name(self) -> str:
        slots = f"{self.slots} slot{'s' * (self.slots > 1)}, {self.edits} edits"
        return f"{self.mode}, {slots}{', all asked' * self.all_asked}"


MEMORIES = (
    Memory(mode="merge", slots=1, edits=16),
    Memory(mode="retrieve", slots=1, edits=16),
    Memory(mode="retrieve", slots=16, edits=256),
    Memory(mode="retrieve", slots=32, edits=500),
    Memory(mode="retrieve", slots=32, edits=500, all_asked=True),
)


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Time of the wrapped model over that of the bare one."""

    model: str
    memory: str
    prefill: float
    decode: float
    bare_prefill_milliseconds: float
    bare_decode_milliseconds: float


def edit_cost(folder: Path, edits: Sequence[Edit], mode: str) -> EditCost:
    """Edits a freshly loaded model, once."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = wrap(AutoModelForCausalLM.from_pretrained(folder), tokenizer, WiseConfig(mode=mode))
    begun = time.process_time()
    _ = model.trainer  # measures the base
    ready = time.process_time()
    report = model.edit(edits)
    done = time.process_time()
    return EditCost(
        mode=mode,
        edits=len(edits),
        verified=len(model.edits),
        cpu_seconds_per_edit=(done - ready) / len(report.outcomes),
        base_cpu_seconds=ready - begun,
    )


def made_up(memory: Memory, *, features: tuple[int, int]) -> MemoryState:
    """A state of random weights and keys, for a value projection of `features` `(f, d)`."""
    f, d = features
    r = min(KEY_SIZE, f)
    random = torch.Generator().manual_seed(0)
    edits = tuple(Edit(prompt=f"prompt {i}", target="target", id=f"{i:04}") for i in range(memory.edits))
    slots = []
    for slot in range(memory.slots):
        held = tuple(edit.id for edit in edits[slot :: memory.slots])
        weight = 0.01 * torch.randn(d, f, generator=random)
        masks = torch.ones(1, d, f, dtype=torch.bool)  # served as the dense weight they leave, however sparse
        scores = (UNREACHABLE,) * len(held)
        slots.append(MaskedDenseSlot(id=slot, edit_ids=held, scores=scores, masks=masks, weight=weight))
    return MemoryState(
        edits=edits,
        slots=tuple(slots),
        keys={edit.id: normalize(torch.randn(KEYS_PER_EDIT, r, generator=random), dim=-1) for edit in edits},
        key_space=KeySpace(mean=torch.zeros(f), projection=torch.randn(r, f, generator=random) / f**0.5),
    )


@torch.no_grad()
def serve_once(model: PreTrainedModel, ids: torch.Tensor, clock: Clock) -> tuple[float, float]:
    """Seconds of one prefill, and the median seconds of a decoded token after it; ids `[1, prompt + decoded]`."""
    prompt, rest = ids[:, :PROMPT_TOKENS], ids[:, PROMPT_TOKENS:]
    begun = clock()
    read = model(prompt, use_cache=True, logits_to_keep=1)
    name = "cache" if "cache" in read else "past_key_values"  # before transformers 5.24
    prefill = clock() - begun
    steps = []
    for token in rest.chunk(DECODED_TOKENS, dim=1):
        begun = clock()
        model(token, use_cache=True, **{name: read[name]})
        steps.append(clock() - begun)
    return prefill, statistics.median(steps)


def overhead(name: str, model: PreTrainedModel, memory: Memory, repeats: int, clock: Clock) -> Overhead:
    """Times `model` bare and with `memory`, in turn, `repeats` times; leaves it bare."""
    threshold = ALWAYS_NEAR if memory.all_asked else NEVER_NEAR
    config = WiseConfig(mode=memory.mode, key_threshold=threshold)
    place = locate(model, config)
    path, _, attribute = place.path.rpartition(".")
    parent = model.get_submodule(path)
    bare: nn.Module = getattr(parent, attribute)
    wrapped = SideMemoryLayer(bare)
    state = made_up(memory, features=(place.in_features, place.out_features))
    served: SideMemory | None = assemble(state, config, inputs=None, device=wrapped.device(), dtype=model.dtype)
    wrapped.memory = served
    size = (1, PROMPT_TOKENS + DECODED_TOKENS)
    ids = torch.randint(model.config.vocab_size, size, generator=torch.Generator().manual_seed(0))
    pairs: list[dict[nn.Module, tuple[float, float]]] = []
    for number in range(repeats + 1):
        # Who goes first changes, so that neither always finds the caches as the other left them.
        order = (bare, wrapped) if number % 2 else (wrapped, bare)
        pair = {}
        for layer in order:
            setattr(parent, attribute, layer)
            pair[layer] = serve_once(model, ids, clock)
        pairs.append(pair)
    setattr(parent, attribute, bare)
    del pairs[0]  # the first pass allocates
    prefill, decode = (statistics.median(p[wrapped][i] / p[bare][i] for p in pairs) for i in (0, 1))
    seconds = [statistics.median(p[bare][i] for p in pairs) for i in (0, 1)]
    return Overhead(
        model=name,
        memory=memory.name,
        prefill=prefill,
        decode=decode,
        bare_prefill_milliseconds=1000 * seconds[0],
        bare_decode_milliseconds=1000 * seconds[1],
    )


def random_llama(blocks: int) -> PreTrainedModel:
    """A Llama of middling width and random weights: what the overhead comes to in a deeper model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    model: PreTrainedModel = LlamaForCausalLM(config)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def show_edit_costs(costs: Sequence[EditCost]) -> None:
    print(f"{'editing':34} {'CPU s per edit':>14} {'verified':>10} {'base, CPU s':>12}")
    for cost in costs:
        share = f"{cost.verified}/{cost.edits}"
        print(f"{cost.mode:34} {cost.cpu_seconds_per_edit:14.3f} {share:>10} {cost.base_cpu_seconds:12.1f}")
    print(f"{'released WISE, not run here':34} {RELEASED_CPU_SECONDS:14.3f}")
    print("    (a figure given: one thread, 12 rows per edit, 70 steps, a model of 2.9 million parameters)")


def show_overheads(rows: Sequence[Overhead]) -> None:
    print(f"{'serving, wrapped over bare':34} {'prefill':>14} {'decode':>10}")
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        bare = [
            statistics.median(row.bare_prefill_milliseconds for row in mine),
            statistics.median(row.bare_decode_milliseconds for row in mine),
        ]
        print(f"{model}: bare, {PROMPT_TOKENS} tokens in {bare[0]:.1f} ms, then {bare[1]:.2f} ms a token")
        for row in mine:
            print(f"{row.memory:42} {row.prefill:6.3f} {row.decode:10.3f}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=model_path(), help="folder of the model (the shipped one)")
    parser.add_argument("--data", type=Path, help="file of edits (counterfactuals for the shipped model)")
    parser.add_argument("--edits", type=int, default=100, help="how many of them (100)")
    parser.add_argument("--blocks", type=int, default=24, help="depth of the random Llama; 0 leaves it out (24)")
    parser.add_argument("--repeats", type=int, default=40, help="pairs of timings of each memory (40)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    args = parser.parse_args()
    if min(args.edits, args.repeats, args.threads) < 1 or args.blocks < 0:
        parser.error("--edits, --repeats and --threads start at 1, --blocks at 0")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    known = read_edits(args.data) if args.data else [r.edit for r in demo_records(args.edits, seed=0)]
    costs = [edit_cost(args.model, known[: args.edits], mode) for mode in MODES]
    show_edit_costs(costs)
    models: dict[str, PreTrainedModel] = {args.model.name: AutoModelForCausalLM.from_pretrained(args.model)}
    if args.blocks:
        models[f"random Llama of {args.blocks} blocks"] = random_llama(args.blocks)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    rows = [overhead(name, model, m, args.repeats, clock) for name, model in models.items() for m in MEMORIES]
    show_overheads(rows)
    figures = {
        "threads": args.threads,
        "repeats": args.repeats,
        "released_cpu_seconds_per_edit": RELEASED_CPU_SECONDS,
        "editing": [asdict(cost) for cost in costs],
        "serving": [asdict(row) for row in rows],
    }
    print(json.dumps(figures, separators=(",", ":")))


if __name__ == "__main__":
    main()
