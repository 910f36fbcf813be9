"""Settings: refused by name where they are wrong, and the same after a trip through JSON."""

from __future__ import annotations

import json
import logging
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wise
from wise.config import SCHEMA_VERSION, WiseConfig
from wise.errors import ConfigError

NAN, INFINITY = float("nan"), float("inf")
BAD: dict[str, list[Any]] = {
    "mode": ["both", "", None, 1, ["merge"]],
    "layer": [-1, 1.0, True, "4"],
    "target_module": ["model.layers.4.down_proj", "{i}.{i}", 4, ""],
    "slot_capacity": [0, -1, 2.0, True],
    "learning_rate": [0, INFINITY, -1e-3, NAN, None],
    "max_steps": [0, 1.0, None, True],
    "prefixes": [-1, 1.0, None, False],
    "key_threshold": [-1.1, 1.1, NAN, None, True],
    "encoder": [1, True, ["folder"]],
    "relations": [1, False, ["file"]],
    "bos": [1, 0, "yes"],
    "terminator": [1, False, ["."]],
    "require": ["everything", "", None, True],
    "seed": [-1, 0.0, None, True],
}
GOOD: dict[str, list[Any]] = {
    "mode": ["merge", "retrieve", "hybrid"],
    "layer": [None, 0, 31],
    "target_module": [None, "model.layers.{i}.mlp.down_proj"],
    "slot_capacity": [None, 1],
    "prefixes": [0],
    "key_threshold": [-1, 1, 0.0],
    "encoder": [None, "folder/of/an/encoder"],
    "relations": [None, "relations.safetensors"],
    "bos": [None, True, False],
    "terminator": [None, "", "."],
    "require": ["prompt", "listed", "sisters"],
    "seed": [0, 2**64],
}


def cases(table: dict[str, list[Any]]) -> Any:
    return pytest.mark.parametrize(("name", "value"), [(name, v) for name, vs in table.items() for v in vs])


@cases(BAD)
def test_a_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        WiseConfig(**{name: value})
    assert str(caught.value).startswith(f"{name}={value!r}: expected ")


@cases(GOOD)
def test_the_edges_of_what_is_allowed_are_allowed(name: str, value: Any) -> None:
    assert getattr(WiseConfig(**{name: value}), name) == value


def test_the_mode_is_hybrid_unless_another_is_asked_for() -> None:
    assert WiseConfig().mode == WiseConfig.from_dict({"schema_version": SCHEMA_VERSION}).mode == "hybrid"


def test_every_setting_is_checked() -> None:
    assert set(BAD) == {f.name for f in fields(WiseConfig)}


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        WiseConfig().seed = 1  # type: ignore[misc]


positive = st.floats(min_value=1e-6, max_value=1e6)
settings = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["merge", "retrieve", "hybrid"]),
        "layer": st.none() | st.integers(0, 1000),
        "slot_capacity": st.none() | st.integers(1, 10**6),
        "learning_rate": positive,
        "key_threshold": st.floats(-1, 1),
        "encoder": st.none() | st.text('a/. é', max_size=6),
        "bos": st.none() | st.booleans(),
        "terminator": st.none() | st.text('a. \n"é', max_size=6),
        "seed": st.integers(0, 2**64),
    },
)


@given(settings)
def test_settings_survive_json(changes: dict[str, Any]) -> None:
    config = WiseConfig(**changes)
    assert WiseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_is_left_out_of_the_json_takes_its_default() -> None:
    assert WiseConfig.from_dict({"schema_version": SCHEMA_VERSION, "seed": 3}) == WiseConfig(seed=3)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, -1, "1", 1.0, True, None])
def test_a_schema_that_is_not_ours_is_refused(version: Any) -> None:
    with pytest.raises(ConfigError, match="schema_version="):
        WiseConfig.from_dict(WiseConfig().to_dict() | {"schema_version": version})


def test_a_missing_schema_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="schema_version=None"):
        WiseConfig.from_dict({"seed": 3})


def test_unknown_settings_are_dropped_with_a_warning_each(caplog: pytest.LogCaptureFixture) -> None:
    old = {"slot": "value", "rank": 4, "relation_floor": 0.5, "subject_floor": 0.8, "sharding": "order"}
    unknown = old | {"learnig_rate": 1.0}
    with caplog.at_level(logging.WARNING, logger="wise"):
        assert WiseConfig.from_dict(WiseConfig(seed=5).to_dict() | unknown) == WiseConfig(seed=5)
    assert [r.levelname for r in caplog.records] == ["WARNING"] * len(unknown)
    assert all(repr(name) in caplog.text for name in unknown) and "did you mean 'learning_rate'?" in caplog.text
    caplog.clear()
    WiseConfig.from_dict(WiseConfig().to_dict())
    assert not caplog.records


def test_a_bad_value_that_was_saved_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="prefixes=-1"):
        WiseConfig.from_dict(WiseConfig().to_dict() | {"prefixes": -1})


def test_config_errors_are_caught_as_wise_errors_and_as_value_errors() -> None:
    for kind in (wise.WiseError, ValueError):
        with pytest.raises(kind):
            wise.WiseConfig(prefixes=-1)
