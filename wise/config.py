"""The settings of a wrapped model: one frozen, validated record, stored as JSON beside its memories."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from reprlib import repr as shortened
from typing import Any

from wise.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MODES = ("merge", "retrieve", "hybrid")
PROMISES = ("prompt", "listed", "sisters")
"""What verification asks, in the order of `WiseConfig.require`."""


@dataclass(frozen=True, kw_only=True)
class WiseConfig:
    """How a side memory is placed, written and routed.

    Raises ConfigError at construction when a value is out of range.
    """

    mode: str = "hybrid"
    """`hybrid` stores one vector per token of an edit's answer and adds them where the text asks the edit's question.
    `merge` keeps all edits in one side memory. `retrieve` keeps one side memory per slot and picks a slot per token."""
    layer: int | None = None
    """Index of the edited block. A higher one leaves fewer blocks above it: edits take less time, and there is less
    depth left to turn what is added into words. None takes 70 % of the depth, in `merge` and `retrieve` 85 %."""
    target_module: str | None = None
    """Path of the module to whose output the memory adds, with `{i}` for the block. None finds it: see `wise info`."""
    slot_capacity: int | None = None
    """Edits that share a slot (`retrieve`). More of them take less memory, and the slot speaks more often where it
    should not. None goes by the size of the layer."""
    learning_rate: float = 0.01
    """Of `merge` and `retrieve`. A higher one fits in fewer steps and moves more of what should not move."""
    max_steps: int = 70
    """Optimisation steps before an edit counts as failed. More steps save difficult edits; easy ones stop earlier."""
    prefixes: int = 5
    """Random prefixes, sampled from the base, that each edit is also trained behind (`merge`, `retrieve`). More of them
    reach more paraphrases and take longer. The paper's ten do no better than five."""
    key_threshold: float = 0.7
    """Cosine to the nearest edit key from which a token's slot is asked (`retrieve`). A higher one reaches fewer
    paraphrases and leaves more of the other text alone."""
    encoder: str | None = None
    """Folder or hub id of the sentence encoder that compares questions (`hybrid`). None takes the installed one, or
    all-MiniLM-L6-v2 from the hub."""
    relations: str | None = None
    """File that `wise train-router` wrote for that encoder. None takes the one that ships with wise."""
    bos: bool | None = None
    """Whether prompts begin with the beginning-of-sequence token. None learns from the base whether it expects one."""
    terminator: str | None = None
    """Text between an answer and end-of-sequence. None learns it from how the base ends its own answers."""
    require: str = "listed"
    """What must hold for an edit to be served. `prompt`: its prompt is answered in every form. `listed`: so are its
    paraphrases, and its locality prompts do not move. `sisters`: nor do other questions about its subject. Whatever is
    chosen, all of it is verified and reported (`merge` and `retrieve` verify the prompt alone)."""
    seed: int = 0
    """Of all that is drawn at random. The same edits, seed and machine make the same memory, bit for bit."""

    def __post_init__(self) -> None:
        for name, check, expectation in _CHECKS:
            value = getattr(self, name)
            if not check(value):
                raise ConfigError(f"{name}={shortened(value)}: expected {expectation}")

    def to_dict(self) -> dict[str, Any]:
        """The settings with `schema_version`, ready for JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WiseConfig:
        """The inverse of `to_dict`. Unknown settings are dropped with a warning.

        Raises ConfigError for a missing or newer `schema_version`.
        """
        version = data.get("schema_version")
        if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= SCHEMA_VERSION:
            raise ConfigError(
                f"schema_version={version!r}: this release reads 1 to {SCHEMA_VERSION}; "
                "a newer file needs a newer wise-runtime"
            )
        known = {f.name for f in fields(cls)}
        for name in sorted(set(data) - known - {"schema_version"}):
            logger.warning("setting %r is not known and was ignored (%s)", name, did_you_mean(name, known))
        return cls(**{name: data[name] for name in known & set(data)})


Check = Callable[[Any], bool]
LARGEST = 2**31 - 1
LARGEST_SEED = 2**64


def _integer(low: int, *, optional: bool = False, high: int = LARGEST) -> Check:
    return lambda v: (optional and v is None) or (type(v) is int and low <= v <= high)


def _optional_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


# What makes each setting valid, and how that is said to the person who set it.
_CHECKS: tuple[tuple[str, Check, str], ...] = (
    ("mode", lambda v: v in MODES, f"one of {', '.join(MODES)}"),
    ("layer", _integer(0, optional=True), "a block index from 0, or None"),
    (
        "target_module",
        lambda v: v is None or (isinstance(v, str) and v.count("{i}") == 1),
        "a module path with one {i} for the block index, or None",
    ),
    ("slot_capacity", _integer(1, optional=True), "a whole number from 1, or None"),
    ("learning_rate", lambda v: type(v) in (int, float) and 0 < v <= sys.float_info.max, "a positive number"),
    ("max_steps", _integer(1), "a whole number from 1"),
    ("prefixes", _integer(0), "a whole number from 0"),
    ("key_threshold", lambda v: type(v) in (int, float) and -1 <= v <= 1, "a cosine, -1 to 1"),
    ("encoder", _optional_text, "a folder or hub id, or None"),
    ("relations", _optional_text, "the path of a file, or None"),
    ("bos", lambda v: v is None or isinstance(v, bool), "true, false or None"),
    ("terminator", _optional_text, "a text, or None"),
    ("require", lambda v: v in PROMISES, f"one of {', '.join(PROMISES)}"),
    ("seed", _integer(0, high=LARGEST_SEED), f"a whole number from 0 to {LARGEST_SEED}"),
)
