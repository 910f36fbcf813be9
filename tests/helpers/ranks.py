"""What each of two processes (gloo, on the CPU) makes of a base that is split over them: `python ranks.py KIND FOLDER`.

Prints one JSON object: what each rank found, in the order of the ranks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2


def work(rank: int, kind: str, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    found = sharded() if kind == "fsdp" else split(kind, folder)
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def split(mode: str, folder: str) -> dict[str, Any]:
    """By tensor parallelism: edits, saves, and asks."""
    from chats import EDITS, TEMPLATE
    from tiny import reading, text
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import wise

    model = AutoModelForCausalLM.from_pretrained(f"{folder}/base", tp_plan="auto").eval()
    width = model.model.layers[1].mlp.down_proj.weight.to_local().shape[1]
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/base")
    tokenizer.chat_template = TEMPLATE
    try:
        wrapped = wise.wrap(model, tokenizer, wise.WiseConfig(mode=mode, layer=1, terminator="w9"), **reading(mode))
    except wise.WiseError as error:
        return {"refused": str(error)}
    report = wrapped.edit(EDITS)
    wrapped.save_pretrained(f"{folder}/memory{dist.get_rank()}")  # by all: its fingerprint gathers the weights
    answers = wrapped.ask([EDITS[0].prompt, EDITS[1].prompt, text([33, 34])])
    return {
        "width": width,
        "outcomes": [(outcome.status, outcome.steps) for outcome in report.outcomes],
        "said": [answer.text for answer in answers],
        "routes": [[(token.slot, token.score) for token in answer.routes.tokens] for answer in answers],
        "digest": wrapped.fingerprint().digest,
    }


def sharded() -> dict[str, Any]:
    """By `fully_shard`."""
    from tiny import reading, tiny_model, tiny_tokenizer
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    import wise

    model, mesh = tiny_model("llama"), init_device_mesh("cpu", (RANKS,))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    before = {name: type(module).__name__ for name, module in model.named_modules()}
    try:
        wise.wrap(model, tiny_tokenizer(), wise.WiseConfig(mode="hybrid"), **reading("hybrid"))
    except wise.WiseError as error:
        unchanged = before == {name: type(module).__name__ for name, module in model.named_modules()}
        return {"refused": str(error), "unchanged": unchanged}
    return {}


if __name__ == "__main__":
    kind, folder = sys.argv[1:]
    mp.spawn(work, (kind, folder), nprocs=RANKS)
    print(json.dumps([json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in range(RANKS)]))
