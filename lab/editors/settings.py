"""The settings of an editor: a frozen record, with the values that a search may try for each setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from wise.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every editor has. Subclasses add their own, check them with `expect` and say what to search."""

    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Setting -> the values that a search over hyper-parameters draws from, alike for all editors in number."""

    seed: int = 0

    def __post_init__(self) -> None:
        self.expect("seed", type(self.seed) is int and self.seed >= 0, "a whole number from 0")

    def expect(self, name: str, right: bool, wanted: str) -> None:
        """Raises ConfigError where a setting is not what it must be."""
        if not right:
            raise ConfigError(f"{name}={getattr(self, name)!r}: expected {wanted}")

    def expect_whole(self, name: str, low: int = 1) -> None:
        value = getattr(self, name)
        self.expect(name, type(value) is int and value >= low, f"a whole number from {low}")

    def expect_number(self, name: str, low: float = 0.0, high: float = float("inf"), *, above: bool = False) -> None:
        """A finite number from `low` to `high`; with `above`, larger than `low`."""
        value = getattr(self, name)
        number = type(value) in (int, float) and value - value == 0
        right = number and (low < value if above else low <= value) and value <= high
        self.expect(name, bool(right), f"a number {'above' if above else 'from'} {low} to {high}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The settings that are named, the others as they are by default. Raises ConfigError for an unknown name."""
        known = {field.name for field in fields(cls)}
        for name in settings:
            if name not in known:
                raise ConfigError(f"setting {name!r} is not known; {did_you_mean(name, known)}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class LayerSettings(Settings):
    """Of an editor that works at one block."""

    layer: int | None = None
    """Index of the edited block; None takes `layer_fraction` of the model's depth."""
    layer_fraction: float = 0.85
    """In [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None:
            self.expect_whole("layer", 0)
        self.expect("layer_fraction", 0 <= self.layer_fraction < 1, "a number in [0, 1)")
