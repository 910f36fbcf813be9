"""Teaches the relation reader that ships with wise: `python scripts/teach_relations.py ENCODER_FOLDER [OUT]`.

Some minutes on one core. Prints how well relations that were never taught are told apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from wise.questions import stock
from wise.router.encoder import TAUGHT, load_encoder
from wise.training.relations import measure, split, teach


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", help="folder or hub id of the sentence encoder")
    parser.add_argument("out", nargs="?", type=Path, default=TAUGHT)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.encoder)
    model = AutoModel.from_pretrained(args.encoder, dtype=torch.float32)
    begun = time.process_time()

    def progress(what: str, done: int, total: int) -> None:
        if done % 25 == 0:
            print(f"{what}: {done} of {total}, {time.process_time() - begun:.0f} CPU-s", file=sys.stderr, flush=True)

    tensors = teach(model, tokenizer, stock(), steps=args.steps, seed=args.seed, progress=progress)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out, metadata={"format": "wise-relations"})
    reader = load_encoder(args.encoder, taught=args.out)
    print(measure(reader.read, stock(), split(stock())[1]))


if __name__ == "__main__":
    main()
