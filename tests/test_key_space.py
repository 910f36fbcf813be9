"""A space of keys is its formula, comes back from disk as it was, and is refused where its parts do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wise.errors import ConfigError
from wise.memory.key_space import COUNTS, Gate, KeySpace, Layer, of_whom
from wise.router.hybrid import Projector

F, R, H = 12, 5, 7
ACTIVATION = 8
"""Numbers of the activation, that the gate sees; two value vectors of two numbers stand behind it."""


def layer(size: int, g: torch.Generator, taken: int = F) -> Layer:
    inner, bias, outer = (torch.randn(shape, generator=g) for shape in ((H, taken), (H,), (size, H)))
    return Layer(inner=inner / taken**0.5, bias=bias, outer=outer)


def learned(seed: int = 0) -> KeySpace:
    """With all that a space can have; the gate is on the first of its numbers alone."""
    g = torch.Generator().manual_seed(seed)
    return KeySpace(
        mean=3 * torch.randn(F, generator=g),
        projection=torch.randn(R, F, generator=g),
        bend=layer(R, g),
        gate=Gate(layer=layer(1, g, ACTIVATION), offset=0.3),
        recent=2,
        surroundings=3,
        text=torch.randn(4, R, generator=g),
        floors=(0.1, 0.2, 1 / 3),
    )


def vectors(count: int = 40) -> Tensor:
    return 3 * torch.randn(count, F, generator=torch.Generator().manual_seed(9))


PLAIN = replace(learned(), bend=None, gate=None, recent=0, surroundings=0, text=None, floors=())
spaces = pytest.mark.parametrize(
    "space",
    [learned(), PLAIN, replace(learned(), bend=None), replace(learned(), gate=None)],
    ids=["bend and gate", "plain", "gate", "bend"],
)


def through(layer: Layer, x: Tensor) -> Tensor:
    """One vector in float64, unit by unit."""
    units = [max(0.0, float(row.double() @ x + bias)) for row, bias in zip(layer.inner, layer.bias, strict=True)]
    return layer.outer.double() @ torch.tensor(units, dtype=torch.float64)


# -- the formula ------------------------------------------------------------------------------


@spaces
def test_keys_and_asks_are_their_formula(space: KeySpace) -> None:
    found, surely = space.keys(vectors()), space.asks(vectors())
    for a, key, sure in zip(vectors(), found, surely, strict=True):
        x = a.double() - space.mean.double()
        wanted = space.projection.double() @ x + (0 if space.bend is None else through(space.bend, x))
        torch.testing.assert_close(key.double(), wanted / wanted.norm(), rtol=1e-4, atol=1e-5)
        gate = space.gate
        logit = torch.inf if gate is None else float(through(gate.layer, x[:ACTIVATION])) + gate.offset
        assert float(sure) == pytest.approx(1 / (1 + 2.718281828459045**-logit), abs=1e-5)
    assert bool((surely == 1).all()) == (space.gate is None)
    assert torch.allclose(found, replace(space, bend=None).keys(vectors()), atol=0.1) == (space.bend is None)


@spaces
def test_a_query_is_a_key_as_long_as_a_question_is_asked(space: KeySpace) -> None:
    queries = space.queries(vectors())
    torch.testing.assert_close(queries, space.keys(vectors()) * space.asks(vectors())[:, None])
    torch.testing.assert_close(queries.norm(dim=-1), space.asks(vectors()))


@spaces
def test_what_serves_projects_as_the_space_does(space: KeySpace) -> None:
    served, a = Projector(space), vectors()
    torch.testing.assert_close(served(a), space.keys(a), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(served.asks(a[:, :ACTIVATION]), space.asks(a), rtol=1e-4, atol=1e-5)
    other = Projector(replace(space, mean=torch.zeros(F)))
    assert not torch.allclose(other(a), space.keys(a), atol=0.1), "the mean is of no account"
    if space.gate is not None:
        assert not torch.allclose(other.asks(a[:, :ACTIVATION]), space.asks(a), atol=0.1)


def test_of_whom_both_ends_of_a_name_count_where_it_comes_nearest() -> None:
    cosines = torch.rand(2, 3, 12, generator=torch.Generator().manual_seed(0))  # two subjects of six parts each
    found = of_whom(cosines, 6)
    assert found.shape == (2, 3, 2)
    for at in ((0, 0), (1, 2)):
        for n in range(2):
            parts = cosines[at][6 * n : 6 * n + 6].tolist()
            ends = [parts[i] / 3 + 2 * parts[i + 1] / 3 for i in (0, 2, 4)]
            assert float(found[at][n]) == pytest.approx(max(ends), abs=1e-6)
    assert torch.equal(of_whom(cosines, 1), cosines)
    assert of_whom(cosines[:, :0], 6).shape == (2, 0, 2), "of no token"


def test_floors_go_by_the_size_of_the_memory() -> None:
    space = learned()
    assert [space.floor(n) for n in (0, 1, 2, 3, 4, 5, 10**6)] == [0.1, 0.1, 0.2, 1 / 3, 1 / 3, 1 / 3, 1 / 3]
    many = replace(space, floors=tuple(n / 10 for n in range(5)))
    assert [round(10 * many.floor(n)) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17)] == [0, 1, 2, 2, 3, 3, 4, 4, 4]
    assert replace(space, floors=(0.5,)).floor(1) == replace(space, floors=(0.5,)).floor(10**6) == 0.5
    with pytest.raises(ConfigError, match="no floors: it was made for mode='retrieve'"):
        PLAIN.floor(1)


# -- on disk ----------------------------------------------------------------------------------


@spaces
def test_a_space_comes_back_bit_for_bit(space: KeySpace, tmp_path: Path) -> None:
    save_file(space.tensors(), tmp_path / "space.safetensors")
    again = KeySpace.from_tensors(load_file(tmp_path / "space.safetensors"))
    assert (again.bend is None, again.gate is None) == (space.bend is None, space.gate is None)
    assert again.floors == space.floors and again.recent == space.recent
    assert again.parts == space.parts == (6 if space.surroundings else 1)
    assert space.gate is None or (again.gate is not None and again.gate.offset == space.gate.offset)
    assert torch.equal(again.queries(vectors()), space.queries(vectors()))
    one, other = space.tensors(), again.tensors()
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", sorted(learned().tensors()))
def test_a_part_of_another_shape_or_type_is_refused(name: str) -> None:
    part = learned().tensors()[name]
    wrong = [part[None], part.half(), part.int()]
    wrong += [part[:-1].clone()] if part.ndim and name not in ("floors", "text") else []
    # A gate may take as few of the numbers as it likes, but no more than there are.
    wrong += [torch.cat([part, part], 1) if name == "gate.inner" else part[:, :-1].clone()] if part.ndim == 2 else []
    wrong += [torch.tensor(-1)] if name in COUNTS else []
    for other in wrong:
        with pytest.raises(ValueError, match=rf"'{name}': '{other.dtype} .* make no space of keys"):
            KeySpace.from_tensors(learned().tensors() | {name: other})


@pytest.mark.parametrize("name", ["mean", "projection", "bend.bias", "bend.outer", "gate.inner", "gate.offset"])
def test_a_part_that_is_missing_is_named(name: str) -> None:
    left = learned().tensors()
    del left[name]
    with pytest.raises(KeyError, match=name):
        KeySpace.from_tensors(left)


@pytest.mark.parametrize("extra", ["more", "bend.more", "gate.offset"])
def test_what_belongs_to_nothing_is_refused(extra: str) -> None:
    space = replace(learned(), gate=None)
    KeySpace.from_tensors(space.tensors())
    with pytest.raises(ValueError, match="make no space of keys"):
        KeySpace.from_tensors(space.tensors() | {extra: torch.tensor(0.0, dtype=torch.float64)})
