"""What edits do to everything else: perplexity, general questions, running text.

    python scripts/bench_general.py --model FOLDER --memory FOLDER --text wikitext.txt --questions nq.jsonl

The memory is one that was saved (`wise eval-chat --save`, `wise edit`). `wise harness` runs tasks of
lm-evaluation-harness, such as BLiMP and LAMBADA, on the same memory.

Perplexity: of the first text, of the base and of the edited model. Questions: how many are answered in a chat to the
letter as the base answers them. Running text is read by the router alone, which is a function of the text: how many
tokens there are, and at how many an edit spoke. Files are those of `wise eval --text`.

Figures go to stdout; the last line is one JSON object of them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wise.lab.eval.perplexity import measure_perplexity
from wise.lab.eval.prompting import Prompter
from wise.lab.eval.routing.texts import read_texts
from wise.model import WiseModel
from wise.router.chat_template import conversation_ids, user_turn
from wise.router.hybrid import HybridRouter
from wise.training.generation import greedy

WINDOW = 512
ANSWER_TOKENS = 32
AT_ONCE = 16
EXAMPLES = ("places", "which")


def questions(model: WiseModel, texts: Sequence[str]) -> dict[str, Any]:
    """How many questions are answered otherwise in a chat, and which."""
    edited = answers(model, texts)
    with model.disabled():
        base = answers(model, texts)
    changed = [question for question, a, b in zip(texts, base, edited, strict=True) if a != b]
    return {"count": len(texts), "changed": len(changed), "which": changed}


def answers(model: WiseModel, questions: Sequence[str]) -> list[list[int]]:
    prompts = [conversation_ids(model.tokenizer, [user_turn(question)]) for question in questions]
    replies: list[list[int]] = []
    for start in range(0, len(prompts), AT_ONCE):
        part = prompts[start : start + AT_ONCE]
        replies += greedy(model.model, part, stops=model.encoder.stops, max_new_tokens=ANSWER_TOKENS)
        sys.stderr.write(f"\rquestions asked: {len(replies)} of {len(prompts)} ")
    return replies


def running_text(model: WiseModel, texts: Sequence[str], limit: int) -> dict[str, Any]:
    """At how many tokens of text an edit speaks, and the first of these places."""
    memory = model.layer.memory
    if memory is None or not isinstance(memory.router, HybridRouter):
        raise SystemExit("the memory is not of mode hybrid, or empty")
    tokens, contexts = 0, list[str]()
    for ids in pieces(model, texts, limit):
        places = memory.router.active(ids)
        contexts += [str(model.tokenizer.decode(ids[max(0, place - 24) : place + 1])) for place in places]
        tokens += len(ids)
        sys.stderr.write(f"\rrunning text: {tokens} tokens, an edit spoke at {len(contexts)} ")
    per_million = 1e6 * len(contexts) / max(1, tokens)
    return {"tokens": tokens, "spoke_at": len(contexts), "per_million": per_million, "places": contexts[:50]}


def pieces(model: WiseModel, texts: Sequence[str], limit: int) -> Iterator[list[int]]:
    """Texts cut into windows, the same number of tokens of each."""
    for text in texts:
        remaining = limit // len(texts)
        for start in range(0, len(text), 100_000):
            ids = model.encoder.prompt(text[start : start + 100_000])
            for at in range(0, len(ids), WINDOW):
                piece = ids[at : at + WINDOW][:remaining]
                remaining -= len(piece)
                if piece:
                    yield piece
            if not remaining:
                break


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--memory", type=Path, required=True, help="folder of a saved memory")
    parser.add_argument("--questions", type=Path, help="questions, JSON lines with `question`")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="running text; perplexity is of the first")
    parser.add_argument("--count", type=int, default=500, help="questions to take, drawn from all over (500)")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens of running text for the router")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--device", default="cpu", help="device of the model (cpu)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    base = AutoModelForCausalLM.from_pretrained(args.model).to(args.device)
    base.train(False)
    model = WiseModel.from_pretrained(args.memory, base, AutoTokenizer.from_pretrained(args.model))
    figures: dict[str, Any] = {"edits": len(model.edits)}
    if args.text:
        texts = ["\n\n".join(read_texts(file)) for file in args.text]
        figures["perplexity"] = measure_perplexity(Prompter(model), texts[:1])
        figures["running text"] = running_text(model, texts, args.tokens)
    if args.questions is not None:
        pool = read_texts(args.questions)
        figures["questions"] = questions(model, random.Random(0).sample(pool, min(args.count, len(pool))))
    sys.stderr.write("\n")
    for name, entry in figures.items():
        print(f"{name}: {entry if not isinstance(entry, dict) else {k: entry[k] for k in entry if k not in EXAMPLES}}")
    print(json.dumps(figures, ensure_ascii=False))


if __name__ == "__main__":
    main()
