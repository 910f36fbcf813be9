"""The model card of a saved memory: what it is, how it is loaded, and what can be read in it.

A card tells how many edits there are and nothing of their texts. A card that somebody has rewritten is kept.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from wise import __version__
from wise.config import WiseConfig
from wise.memory.fingerprint import Fingerprint
from wise.memory.state import MemoryState

CARD_FILE = "README.md"
MARK = "<!-- Written by wise with each save. Delete this line to keep your own text. -->"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""What the hub can call a model. A folder is stored by its absolute path, which this does not match."""

_TEXT = """---
{metadata}
---
{mark}

# {count} of {base}

A side memory made by wise {version}. It corrects facts in a language model without changing the model's weights, which
are not in this folder.

| | |
|---|---|
| Base | {base} |
| Revision | {revision} |
| Architecture, precision | `{model_type}`, {dtype} |
| Edited module | `{path}` |
| Mode | `{mode}` |
| Live edits | {edits} |

## Load it

```python
import wise

model = {load}
print(model.edits)
```

It is put beside this base and no other: shape and a sample of the weights are compared when it is loaded.

## What it does

At the edited module a router decides for each token whether an edit is meant, and only then adds that edit's vectors.
Where none is meant, the output of the base is unchanged bit for bit. Each edit was kept only if the model generated its
target by itself.

## Limits

A question in other words may be missed, and a question close to an edit may be answered with it. An edit was verified
on this base as it was: a fine-tuned or quantized copy may not say it. The edits say what their authors wrote; nobody
has checked whether it is true.

## What can be read here

`edits.jsonl` holds every live edit as plain text: prompt, target, names, author, time. `wise_config.json` holds the
settings and the name of the base. Of deleted edits nothing is left. Whoever can read this folder can read the edits.
"""


def model_card(config: WiseConfig, state: MemoryState, base: Fingerprint) -> str:
    """Markdown behind the YAML header that the hub reads; the same for the same memory."""
    named = bool(HUB_ID.fullmatch(base.name))
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if named else {}
    metadata = ModelCardData(
        base_model=base.name if named else None, library_name="wise", pipeline_tag="text-generation",
        tags=["wise", "knowledge-editing", "model-editing"], **relation
    )
    count = len(state.edits)
    return _TEXT.format(
        metadata=metadata.to_yaml(), mark=MARK, version=__version__,
        count="One edit" if count == 1 else f"{count} edits",
        base=f"`{base.name}`" if base.name else f"a `{base.model_type}` model",
        revision=f"`{base.revision}`" if base.revision else "not known",
        model_type=base.model_type, dtype=base.dtype, path=base.path, mode=config.mode, edits=count,
        load=f"wise.WiseModel.from_pretrained({'PATH' if base.name else 'PATH, base, tokenizer'})  # this folder",
    )


def keep_card(old: Path, new: Path) -> None:
    """Takes a card that somebody has rewritten from the folder `old` into the folder `new`."""
    with suppress(FileNotFoundError):  # there is none, or another save is replacing the folder
        card = (old / CARD_FILE).read_bytes()
        if MARK.encode() not in card:
            (new / CARD_FILE).write_bytes(card)
