"""The demo: a small language model that ships with wise, and the facts it was taught.

The model (`model_path()`) was trained by `scripts/build_demo_model.py` on `facts.jsonl` in the
phrasings of `templates.json`, so that every part of wise can be tried, tested and timed with no
download. It knows these facts and next to nothing else.
"""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """Folder of the shipped model, for `from_pretrained` of a causal LM and of its tokenizer."""
    return Path(__file__).parent / "model"
