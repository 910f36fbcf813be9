"""The settings of a wrapped model: one frozen, validated record, stored as JSON beside its memories."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from wise.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MODES = ("merge", "retrieve", "hybrid")


@dataclass(frozen=True, kw_only=True)
class WiseConfig:
    """How a side memory is placed, written and routed (symbols: WISE, arXiv 2405.14768).

    Raises ConfigError at construction when a value is out of range.
    """

    mode: str = "hybrid"
    """`merge` keeps all edits in one side memory; `retrieve` keeps one per slot and picks a slot per token; `hybrid`
    stores one vector per token of an edit's answer and adds them where the text asks the edit's question."""
    layer: int | None = None
    """Index of the edited block; None takes `layer_fraction` of the model's depth."""
    layer_fraction: float | None = None
    """Depth of the edited block when `layer` is None, in [0, 1). None takes 0.85, as the paper edits block 27 of 32,
    and 0.7 in `hybrid`, whose answers are read through the blocks above."""
    value_projection: str | None = None
    """Path of the value projection with `{i}` for the block, for architectures that wise does not know."""
    slot_capacity: int | None = None
    """Edits a slot may hold (`retrieve`); None goes by the size of the layer."""
    shards: int = 2
    """k: shards of a slot, each trained through its own random mask and then merged."""
    mask_ratio: float = 0.2
    """rho: share of the entries of W that a shard may change."""
    merge: str = "ties"
    """How shards become one memory: see `wise.memory.merging.MERGES`."""
    merge_density: float = 1.0
    """Share of a shard's own entries that `ties` keeps."""
    margin_low: float = 0.25
    """alpha: routing score that unrelated tokens stay under, in units of the base's mean output norm."""
    margin_high: float = 1.0
    """beta: routing score that edited tokens reach, same unit."""
    margin_gap: float = 0.5
    """gamma: least distance between the two, same unit."""
    threshold_ratio: float | None = None
    """Share of the smallest score of a slot's edits at which its gate opens: lower reaches more paraphrases, and
    more of what should be left alone. The paper's is 1.0, its released code's 0.88. None takes 0.9, or 0.7 in
    `retrieve`, where a token must also be near an edit key."""
    learning_rate: float = 0.01
    max_steps: int = 70
    """Optimisation steps that an edit may take before it counts as failed."""
    prefixes: int = 5
    """Random prefixes, sampled from the base, that each edit is also trained behind. The paper's ten do no better."""
    key_dim: int = 256
    """r: size of an edit key (`retrieve`)."""
    key_floor: float = 0.7
    """Cosine that a token's activation must reach to an edit key for any slot to be asked (`retrieve`)."""
    encoder: str | None = None
    """Folder or hub id of the sentence encoder that compares questions (`hybrid`); None takes the one that is
    installed, or all-MiniLM-L6-v2 from the hub."""
    relations: str | None = None
    """File of what that encoder was taught (`wise train-router`); None takes what ships with wise."""
    bos: bool | None = None
    """Put the beginning-of-sequence token before a prompt; None learns from the base whether it expects one."""
    terminator: str | None = None
    """Text between an answer and end-of-sequence; None learns it from how the base ends its own answers."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, check, wanted in _CHECKS:
            value = getattr(self, name)
            if not check(value):
                raise ConfigError(f"{name}={value!r}: expected {wanted}")
        if self.margin_low >= self.margin_high:
            raise ConfigError(
                f"margin_low={self.margin_low} must lie under margin_high={self.margin_high}: "
                "unrelated tokens score below the first, edited tokens above the second"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings with `schema_version`, ready for JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

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

    @classmethod
    def from_json(cls, text: str) -> WiseConfig:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the configuration is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"the configuration is a {type(data).__name__}: expected a JSON object")
        return cls.from_dict(data)


Check = Callable[[Any], bool]


def _integer(low: int, *, optional: bool = False) -> Check:
    return lambda v: (optional and v is None) or (type(v) is int and v >= low)


def _real(low: float, high: float) -> Check:
    """Numbers in (low, high]."""
    return lambda v: type(v) in (int, float) and low < v <= high


def _fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def _text(*, optional: bool) -> Check:
    return lambda v: (optional and v is None) or isinstance(v, str)


# What makes each setting valid, and how that is said to the person who set it.
_CHECKS: tuple[tuple[str, Check, str], ...] = (
    ("mode", lambda v: v in MODES, f"one of {', '.join(MODES)}"),
    ("layer", _integer(0, optional=True), "a block index from 0, or None"),
    ("layer_fraction", lambda v: v is None or _fraction(v), "a number in [0, 1), or None"),
    (
        "value_projection",
        lambda v: v is None or (isinstance(v, str) and v.count("{i}") == 1),
        "a module path with one {i} for the block index, or None",
    ),
    ("slot_capacity", _integer(1, optional=True), "a whole number from 1, or None"),
    ("shards", _integer(1), "a whole number from 1"),
    ("mask_ratio", _real(0, 1), "a number in (0, 1]"),
    ("merge", _text(optional=False), "the name of a merge"),
    ("merge_density", _real(0, 1), "a number in (0, 1]"),
    ("margin_low", _real(0, sys.float_info.max), "a positive number"),
    ("margin_high", _real(0, sys.float_info.max), "a positive number"),
    ("margin_gap", _real(0, sys.float_info.max), "a positive number"),
    ("threshold_ratio", lambda v: v is None or _real(0, 1)(v), "a number in (0, 1], or None"),
    ("learning_rate", _real(0, sys.float_info.max), "a positive number"),
    ("max_steps", _integer(1), "a whole number from 1"),
    ("prefixes", _integer(0), "a whole number from 0"),
    ("key_dim", _integer(1), "a whole number from 1"),
    ("key_floor", lambda v: type(v) in (int, float) and -1 <= v <= 1, "a cosine, -1 to 1"),
    ("encoder", _text(optional=True), "a folder or hub id, or None"),
    ("relations", _text(optional=True), "the path of a file, or None"),
    ("bos", lambda v: v is None or isinstance(v, bool), "true, false or None"),
    ("terminator", _text(optional=True), "a text, or None"),
    ("seed", _integer(0), "a whole number from 0"),
)
