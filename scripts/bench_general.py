"""What edits do to everything else: minimal pairs, last words, perplexity, general questions, running text.

    python scripts/bench_general.py --model FOLDER --memory FOLDER --pairs blimp.jsonl --last-words lambada.jsonl \\
        --text wikitext.txt book.txt --questions questions.jsonl

The memory is one that was saved (`wise eval-chat --save`, `wise edit`). Each measure is taken of the base and of the
edited model.

Minimal pairs (BLiMP: `sentence_good`, `sentence_bad`): share of pairs whose good sentence is the likelier one. Last
words (LAMBADA: `text`): share whose last word is the likeliest, token by token. Perplexity: of the texts, in windows.
General questions: share whose answer in a chat is the base's to the letter.

Running text is read by the router alone, which is a function of the text: how many tokens there are, and at how many
an edit spoke.

One table goes to stdout; the last line is one JSON object of the same figures.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wise.lab.eval.perplexity import measure_perplexity
from wise.lab.eval.prompting import Prompter, PromptRow
from wise.model import WiseModel
from wise.router.hybrid import HybridRouter
from wise.router.turns import render
from wise.training.generation import greedy

WINDOW = 512
"""Tokens of a piece of running text."""
ANSWER_TOKENS = 32
AT_ONCE = 16
EXAMPLES = ("places", "which")

Measure = Callable[[Prompter, WiseModel, Sequence[Any], bool], list[bool]]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in opened(file).splitlines() if line.strip()]


def opened(file: Path) -> str:
    data = file.read_bytes()
    data = lzma.decompress(data) if file.suffix == ".xz" else gzip.decompress(data) if file.suffix == ".gz" else data
    return data.decode("utf-8")


def taken(rows: Sequence[Any], count: int) -> list[Any]:
    """So many of them, drawn from all over."""
    return random.Random(0).sample(list(rows), min(count, len(rows)))


def sentence_rows(model: WiseModel, texts: Sequence[str]) -> list[PromptRow]:
    rows = [model.encoder.prompt(text) for text in texts]
    return [PromptRow(prompt=row[:1], fed=row[1:]) for row in rows]


def pairs(prompter: Prompter, model: WiseModel, found: Sequence[dict[str, str]], base: bool) -> list[bool]:
    """Whether the good sentence of each pair is the likelier one, all tokens together."""
    rows = [sentence_rows(model, [pair[name] for pair in found]) for name in ("sentence_good", "sentence_bad")]
    totals = [
        [mean * len(row.fed) for mean, row in zip(prompter.log_probs(f"pairs.{i}", part, base=base), part, strict=True)]
        for i, part in enumerate(rows)
    ]
    return [good > bad for good, bad in zip(*totals, strict=True)]


def last_words(prompter: Prompter, model: WiseModel, texts: Sequence[str], base: bool) -> list[bool]:
    """Whether each text's last word is what the model says, token by token."""
    rows = []
    for text in texts:
        begin, _, word = text.strip().rpartition(" ")
        prompt, whole = model.encoder.prompt(begin), model.encoder.prompt(f"{begin} {word}")
        rows.append(PromptRow(prompt=prompt, fed=whole[len(prompt) :]))
    return [best == row.fed for best, row in zip(prompter.best("last words", rows, base=base), rows, strict=True)]


def compared(model: WiseModel, given: Sequence[Any], measure: Measure) -> dict[str, Any]:
    """The share that comes out right of the base and of the edited model, and how many come out otherwise."""
    prompter = Prompter(model)
    before, after = (measure(prompter, model, given, base) for base in (True, False))
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    count = len(given)
    return {"count": count, "base": sum(before) / count, "edited": sum(after) / count, "changed": changed}


def questions(model: WiseModel, asked: Sequence[str]) -> dict[str, Any]:
    """How many questions are answered otherwise in a chat, and which."""
    edited = answers(model, asked)
    with model.disabled():
        base = answers(model, asked)
    changed = [question for question, a, b in zip(asked, base, edited, strict=True) if a != b]
    return {"count": len(asked), "changed": len(changed), "which": changed}


def answers(model: WiseModel, questions: Sequence[str]) -> list[list[int]]:
    prompts = [render(model.tokenizer, [{"role": "user", "content": question}]) for question in questions]
    said: list[list[int]] = []
    for start in range(0, len(prompts), AT_ONCE):
        part = prompts[start : start + AT_ONCE]
        said += greedy(model.model, part, stops=model.encoder.stops, max_new_tokens=ANSWER_TOKENS)
        sys.stderr.write(f"\rquestions asked: {len(said)} of {len(prompts)} ")
    return said


def running_text(model: WiseModel, files: Sequence[Path], limit: int) -> dict[str, Any]:
    """At how many tokens of text an edit speaks; where, for whoever wants to look."""
    memory = model.layer.memory
    if memory is None or not isinstance(memory.router, HybridRouter):
        raise SystemExit("the memory is not of mode hybrid, or empty")
    tokens, spoken = 0, list[str]()
    for ids in pieces(model, files, limit):
        places = memory.router.active_positions(ids)
        spoken += [str(model.tokenizer.decode(ids[max(0, place - 24) : place + 1])) for place in places]
        tokens += len(ids)
        sys.stderr.write(f"\rrunning text: {tokens} tokens, an edit spoke at {len(spoken)} ")
    per_million = 1e6 * len(spoken) / max(1, tokens)
    return {"tokens": tokens, "spoke_at": len(spoken), "per_million": per_million, "places": spoken[:50]}


def pieces(model: WiseModel, files: Sequence[Path], limit: int) -> Iterator[list[int]]:
    """Texts cut into windows, the same share of each file."""
    for file in files:
        left = limit // len(files)
        text = opened(file)
        for start in range(0, len(text), 100_000):
            ids = model.encoder.prompt(text[start : start + 100_000])
            for at in range(0, len(ids), WINDOW):
                piece = ids[at : at + WINDOW][:left]
                left -= len(piece)
                if piece:
                    yield piece


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--memory", type=Path, required=True, help="folder of a saved memory")
    parser.add_argument("--pairs", type=Path, help="minimal pairs, JSON lines (.xz and .gz are read)")
    parser.add_argument("--last-words", type=Path, help="texts, JSON lines with `text`")
    parser.add_argument("--questions", type=Path, help="questions, JSON lines with `question`")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="running text; perplexity is of the first")
    parser.add_argument("--count", type=int, default=500, help="pairs, texts and questions to take (500)")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens of running text for the router")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--device", default="cpu", help="device of the model (cpu)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    base = AutoModelForCausalLM.from_pretrained(args.model).to(args.device)
    base.train(False)
    model = WiseModel.from_pretrained(base, AutoTokenizer.from_pretrained(args.model), args.memory)
    figures: dict[str, Any] = {"edits": len(model.edits)}
    if args.pairs is not None:
        figures["pairs"] = compared(model, taken(lines(args.pairs), args.count), pairs)
    if args.last_words is not None:
        texts = [row["text"] for row in taken(lines(args.last_words), args.count)]
        figures["last words"] = compared(model, texts, last_words)
    if args.text:
        figures["perplexity"] = measure_perplexity(Prompter(model), [opened(args.text[0])])
        figures["running text"] = running_text(model, args.text, args.tokens)
    if args.questions is not None:
        figures["questions"] = questions(model, [row["question"] for row in taken(lines(args.questions), args.count)])
    sys.stderr.write("\n")
    for name, found in figures.items():
        print(f"{name}: {found if not isinstance(found, dict) else {k: found[k] for k in found if k not in EXAMPLES}}")
    print(json.dumps(figures, ensure_ascii=False))


if __name__ == "__main__":
    main()
