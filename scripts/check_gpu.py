"""What only a GPU can show: that edits hold there in each precision and attention, and what they cost on a large base.

    python scripts/check_gpu.py --output gpu.json
    python scripts/check_gpu.py --tiny --output cpu.json     # the same code on the CPU, with a tiny base

*Holds*: counterfactuals are written into the shipped model on the GPU, and asked for in one padded batch; how many
were verified, and whether the answers are those of the first attention. Flash attention is tried where it is installed,
and a model spread over devices where there are two.

*Costs*: a random Llama of 8 billion parameters in bf16. Milliseconds an edit, of 64 given at once and of one given
alone (a random base is no easier to edit than a trained one, so read `verified` beside it), and a decoded token beside
64 live edits, as a ratio to the bare model, the median of pairs timed in turn.

A table goes to stdout, and JSON with date and hardware to `--output`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

import wise
from wise import WiseConfig, WiseModel
from wise.demo import model_path
from wise.demo.records import demo_records
from wise.edits import Edit
from wise.lab.eval.environment import environment
from wise.lab.eval.results_file import write_json
from wise.training.generation import greedy

LARGE = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
TINY = {
    "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
TOKENS = 32
"""Tokens decoded in one timing."""
HELD = 8


def synchronized(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def attentions(device: torch.device) -> list[tuple[str, str]]:
    """Precisions with the attentions that they can be tried with; flash attention takes no float32."""
    flash = ["flash_attention_2"] if device.type == "cuda" and find_spec("flash_attn") is not None else []
    return [
        (dtype, attention)
        for dtype in ("float32", "bfloat16", "float16")
        for attention in ["sdpa", "eager", *(flash if dtype != "float32" else [])]
    ]


def holds(device: torch.device, edits: Sequence[Edit]) -> Iterator[dict[str, Any]]:
    """Edits of the shipped model on the device, in each precision and attention."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    places: list[Any] = [device]
    if torch.cuda.device_count() > 1:
        places.append("balanced")
    texts: dict[str, list[str]] = {}
    for place in places:
        for dtype, attention in attentions(device):
            row = {"device": str(place), "dtype": dtype, "attention": attention, "edits": len(edits)}
            try:
                base = AutoModelForCausalLM.from_pretrained(
                    model_path(), dtype=getattr(torch, dtype), device_map=place, attn_implementation=attention
                )
                model = wise.wrap(base.eval(), tokenizer, WiseConfig(mode="hybrid"))
                report = model.edit(edits)
                answers = [answer.text for answer in model.ask([edit.prompt for edit in edits])]
            except Exception as error:  # of this precision and attention; the others are tried all the same
                yield row | {"verified": 0, "answers_of_the_first": False, "error": f"{type(error).__name__}: {error}"}
                continue
            alike = answers == texts.setdefault(dtype, answers)
            yield row | {"verified": report.count("verified"), "answers_of_the_first": alike}


def random_llama(shape: dict[str, int], device: torch.device) -> PreTrainedModel:
    config = LlamaConfig(**shape, max_position_embeddings=8192, tie_word_embeddings=False)
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def decode_seconds(model: PreTrainedModel, prompt: Sequence[int], device: torch.device) -> float:
    start = synchronized(device)
    greedy(model, [list(prompt)], stops=[model.config.vocab_size - 1], max_new_tokens=TOKENS)
    return synchronized(device) - start


def costs(model: WiseModel, edits: Sequence[Edit], device: torch.device, pairs: int) -> dict[str, Any]:
    """Milliseconds an edit, at once and alone, and the ratio of a decoded token."""
    *many, first, lone = edits
    model.prepare()
    model.edit(first)  # allocates and chooses kernels
    start = synchronized(device)
    report = model.edit(many)
    at_once = (synchronized(device) - start) / len(many)
    start = synchronized(device)
    model.edit(lone)
    alone = synchronized(device) - start
    prompt, ratios = model.encoder.prompt("The weather was fine, and we went for a long walk along the river."), []
    for number in range(pairs + 1):
        spent = {}
        for edited in (True, False) if number % 2 else (False, True):
            with model.serving(model.state if edited else type(model.state)()) as served:
                spent[edited] = decode_seconds(served, prompt, device)
        ratios.append(spent[True] / spent[False])
    return {
        "parameters": model.model.num_parameters(),
        "edits": len(many),
        "verified": report.count("verified"),
        "milliseconds_at_once": 1000 * at_once,
        "milliseconds_alone": 1000 * alone,
        "decode_ratio": statistics.median(ratios[1:]),  # the first pair allocates
        "milliseconds_a_token": 1000 * spent[False] / TOKENS,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file for the figures, JSON")
    parser.add_argument("--edits", type=int, default=64, help="edits given at once to the large base (64)")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of timings of decoding (20)")
    parser.add_argument("--tiny", action="store_true", help="a tiny base, on the CPU where there is no GPU")
    args = parser.parse_args()
    if min(args.edits, args.pairs) < 1:
        parser.error("--edits and --pairs start at 1")
    if not args.output.absolute().parent.is_dir():
        parser.error(f"--output {args.output}: there is no folder {args.output.parent}; make it first")
    return args


def main() -> None:
    args = parse_args()
    if not torch.cuda.is_available() and not args.tiny:
        sys.exit(
            "check_gpu: torch finds no CUDA device: install torch with CUDA on a machine with an NVIDIA GPU, or try "
            "the code on the CPU with --tiny"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    edits = [record.edit for record in demo_records(args.edits + 2, seed=0)]
    shape = TINY if args.tiny else LARGE
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(device),
        "cuda": torch.version.cuda,
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        "holds": rows,
        "shape": shape,
    }
    print(f"{'device':10} {'dtype':10} {'attention':18} {'verified':>10} {'as the first':>13}")
    for row in holds(device, edits[: 2 if args.tiny else HELD]):
        rows.append(row)
        verified, alike = f"{row['verified']} of {row['edits']}", "yes" if row["answers_of_the_first"] else "no"
        name = f"{row['device']:10} {row['dtype']:10} {row['attention']:18}"
        print(f"{name} {verified:>10} {alike:>13} {row.get('error', '')}".rstrip(), flush=True)
        write_json(args.output, figures)  # what is known, should the rest fail
    base = random_llama(shape, device)
    model = wise.wrap(base, AutoTokenizer.from_pretrained(model_path()), WiseConfig(mode="hybrid", terminator=""))
    spent = costs(model, edits, device, args.pairs)
    for name, value in spent.items():
        print(f"{name:24} {value:.3f}" if isinstance(value, float) else f"{name:24} {value}")
    write_json(args.output, figures | {"costs": spent})


if __name__ == "__main__":
    main()
