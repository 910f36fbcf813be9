"""The settings of an editor: a frozen record whose annotations say what each setting may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from math import inf, isfinite
from types import NoneType
from typing import Annotated, Any, ClassVar, Self, get_args, get_type_hints

from wise.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Of a number in `Annotated`: from `low` to `high`, both included unless an `open_` says otherwise."""

    low: float = 0
    high: float = inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        begin = f"{'above' if self.open_low else 'from'} {self.low:g}"
        return begin if self.high == inf else f"{begin} {'to below' if self.open_high else 'to'} {self.high:g}"


Count = Annotated[int, Bounds(low=1)]
CountOrZero = Annotated[int, Bounds()]
Nonnegative = Annotated[float, Bounds()]
Positive = Annotated[float, Bounds(open_low=True)]
Share = Annotated[float, Bounds(high=1, open_low=True)]
Depth = Annotated[float, Bounds(high=1, open_high=True)]

KINDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every editor has. Subclasses add their own and say what to search."""

    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Setting -> the values that a search over hyper-parameters draws from, alike for all editors in number."""

    seed: CountOrZero = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that the annotation of its field excludes."""
        cls: Any = type(self)
        for name, (kind, bounds, optional) in _rules(cls).items():
            value = getattr(self, name)
            right = type(value) is kind or (kind is float and type(value) is int)
            if right and kind in (int, float):
                right = isfinite(value) and (bounds is None or value in bounds)
            expectation = KINDS[kind] if bounds is None else f"{KINDS[kind]} {bounds}"
            self.expect(name, right or (optional and value is None), expectation + " or None" * optional)

    def expect(self, name: str, right: bool, expectation: str) -> None:
        if not right:
            raise ConfigError(f"{name}={getattr(self, name)!r}: expected {expectation}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The settings that are named, the others as they are by default. Raises ConfigError for an unknown name."""
        names = {field.name for field in fields(cls)}
        for name in settings:
            if name not in names:
                raise ConfigError(f"setting {name!r} is not known; {did_you_mean(name, names)}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


@cache
def _rules(cls: Any) -> dict[str, tuple[type, Bounds | None, bool]]:
    """Field -> its type, its bounds, and whether it may be None; of the fields that are single values."""
    hints = get_type_hints(cls, include_extras=True)
    rules = {}
    for field in fields(cls):
        hint = hints[field.name]
        optional = NoneType in get_args(hint)
        plain = next(arg for arg in get_args(hint) if arg is not NoneType) if optional else hint
        kind, *extras = get_args(plain) if hasattr(plain, "__metadata__") else (plain,)
        if kind in KINDS:
            rules[field.name] = kind, next((extra for extra in extras if isinstance(extra, Bounds)), None), optional
    return rules


@dataclass(frozen=True, kw_only=True)
class LayerSettings(Settings):
    layer: CountOrZero | None = None
    """Index of the edited block; None takes `layer_fraction` of the model's depth."""
    layer_fraction: Depth = 0.85
