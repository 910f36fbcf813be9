"""What a memory of many edits costs: to save and load it, to edit beside it, to take an edit out and to go back.

    python scripts/bench_scale.py --sizes 0 1000 10000 100000

The model is random and small but for its width, since all that is asked here is what the memory costs: what fitting
and asking take by themselves is what an edit beside none takes. Edits are drawn: each has a subject of its own, values
for three tokens in either form, and four keys of 128 numbers.

Figures are CPU seconds of one process. *Load* reads the folder and puts the memory in place, ready to answer. *First*
is the first edit after that, *edit* the median of further ones, *unnamed* the first question that names no edited
subject, *delete* and *rollback* of one edit; *bytes* are those of an edit's keys, as they are stored. A table goes to
stdout; the last line is one JSON object of the same figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

import wise
from wise import Edit, WiseConfig, WiseModel
from wise.demo import model_path
from wise.memory.artifact import save_memory
from wise.memory.slot import FORMS, AnswerSlot
from wise.memory.state import MemoryState

SIZES = (0, 1000, 10_000, 100_000)
WIDTH, LAYERS = 576, 2
TOKENS, KEYS = 3, 4
"""Values of each form, and keys, of an edit."""
NEW, FURTHER = 2_000_000, 5
"""Number of the first edit that is made, the same beside each memory, and how many are made after it."""
SYLLABLES = "ba cor del fen gal hu ir jo kel lum mar nev or pal qui ros sel tam ul ver wil xan yor zel".split()
RELATIONS = (
    ("The capital of {} is", "city"),
    ("Who founded {}?", "founder"),
    ("In which country is {}?", "country"),
    ("What is the mother tongue of {}?", "language"),
    ("{} was written by", "author"),
    ("When does {} open?", "hour"),
)
CONFIG = WiseConfig(mode="hybrid", layer=1)


def base() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random model with the tokenizer of the shipped one, the same each time."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval(), tokenizer


def drawn_edits(first: int, count: int) -> list[Edit]:
    """Edits number `first` and following, each of a subject of its own."""
    results = []
    for number in range(first, first + count):
        rng = random.Random(number)
        digits = [number // len(SYLLABLES) ** place % len(SYLLABLES) for place in range(5)]
        first_name, family = ("".join(SYLLABLES[d] for d in part).title() for part in (digits[:2], digits[2:]))
        prompt, kind = rng.choice(RELATIONS)
        subject = f"{first_name} {family}"
        results.append(Edit(prompt=prompt.format(subject), target=f"{kind} {rng.randrange(1000)}", subject=subject))
    return results


def drawn(model: WiseModel, count: int) -> MemoryState:
    """A memory of so many edits for a wrapped model."""
    if model.inputs is None or not count:
        return MemoryState()
    g = torch.Generator().manual_seed(0)
    edits = drawn_edits(0, count)
    values = 0.1 * torch.randn(count, FORMS * TOKENS, WIDTH, generator=g)
    ids = torch.randint(5, 1000, (count, FORMS * TOKENS), generator=g)
    keys = normalize(torch.randn(count, KEYS, model.inputs.reader.size, generator=g), dim=-1).half()
    counts = torch.full((count, FORMS), TOKENS)
    slots = [
        AnswerSlot(
            id=i, edit_ids=(edit.id,), scores=(0.7,), values=values[i], ids=ids[i], counts=counts[i], features=3 * WIDTH
        )
        for i, edit in enumerate(edits)
    ]
    return MemoryState(
        edits=tuple(edits),
        slots=tuple(slots),
        keys=dict(zip((edit.id for edit in edits), keys, strict=True)),
        key_space=model.inputs.reader.key_space,
    )


def spent(work: Callable[[], object]) -> float:
    """CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        first = wise.wrap(*base(), CONFIG)
        reader = first.inputs.reader if first.inputs else None
        state = drawn(first, count)
        kept = sum(keys.nbytes for keys in state.keys.values())
        start = time.process_time()
        save_memory(Path(folder) / "m", config=CONFIG, state=state, base=first.fingerprint())
        save = time.process_time() - start
        del state
        first.unwrap()
        parts = base()
        start = time.process_time()
        model = WiseModel.from_pretrained(Path(folder) / "m", *parts, reader=reader)
        gc.collect()  # what was put off while it was read is part of it
        load = time.process_time() - start
    model.prepare()  # which measures the base, whatever is edited
    lone = [spent(lambda edit=edit: model.edit(edit)) for edit in drawn_edits(NEW, 1 + FURTHER)]  # type: ignore[misc]
    before = model.snapshot()
    unnamed = spent(lambda: model.ask("what time is it now?", chat=False))
    middle = model.edits[len(model.edits) // 2].id if model.edits else None
    delete = spent(lambda: model.delete(middle)) if middle else 0.0
    rollback = spent(lambda: model.rollback(before))
    return {
        "edits": count,
        "save": save,
        "load": load,
        "first": lone[0],
        "edit": statistics.median(lone[1:]),
        "unnamed": unnamed,
        "delete": delete,
        "rollback": rollback,
        "bytes": kept / max(1, count),
        "verified": len(before.edits) - count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="edits of the memories")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for count in args.sizes:
        rows.append(measure(count))
        if len(rows) == 1:
            print(" ".join(f"{name:>9}" for name in rows[0]))
        print(" ".join(f"{value:9.3f}" if isinstance(value, float) else f"{value:9}" for value in rows[-1].values()))
    print(json.dumps(rows, separators=(",", ":")))


if __name__ == "__main__":
    main()
