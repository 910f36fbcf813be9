"""Edits its part of a stream, one by one: `accelerate launch --multi_gpu --num_processes 2 shards.py FOLDER`.

`--multi_gpu` is how accelerate starts several processes; here they are on the CPU. Each has a base of its own, and
saves its memory to `FOLDER/memoryRANK`; `wise store import` puts them together.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from test_chat_edits import chat_model
from tiny import text

import wise

STREAM = [
    wise.Edit(id=f"e{i}", prompt=text([50 + i, 51 + i, 52 + i]), target=text([70 + i]), subject=text([50 + i]))
    for i in range(0, 12, 4)
]


def edit_stream(edits: list[wise.Edit], folder: Path) -> None:
    model = chat_model()
    for edit in edits:
        if model.edit(edit).failed:
            raise RuntimeError(f"{edit.id} did not verify")
    model.save_pretrained(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    process = PartialState(cpu=True)
    with process.split_between_processes(STREAM) as own:
        edit_stream(own, Path(sys.argv[1]) / f"memory{process.process_index}")
    process.wait_for_everyone()
    print(f"{process.process_index}: {process.backend}, {len(own)} edits")
    process.destroy_process_group()
