"""A space of keys is its formula, comes back from disk as it was, and is refused where its parts do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wise.memory.key_space import KeySpace, RelationSpace, Space, space_from_tensors

F, R = 12, 5


def activations() -> KeySpace:
    g = torch.Generator().manual_seed(0)
    return KeySpace(mean=3 * torch.randn(F, generator=g), projection=torch.randn(R, F, generator=g))


RELATIONS = RelationSpace(reader="a reader, ä", size=R, threshold=1 / 3, unnamed_threshold=0.1 + 0.2)
spaces = pytest.mark.parametrize("space", [activations(), RELATIONS], ids=["activations", "relations"])


def vectors(count: int = 40) -> Tensor:
    return 3 * torch.randn(count, F, generator=torch.Generator().manual_seed(9))


def test_keys_are_their_formula() -> None:
    space = activations()
    found = space.keys(vectors())
    assert found.shape == (40, space.size) and found.dtype == torch.float32
    for a, key in zip(vectors(), found, strict=True):
        wanted = space.projection.double() @ (a.double() - space.mean.double())
        torch.testing.assert_close(key.double(), wanted / wanted.norm(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(space.shift, space.projection @ -space.mean)
    assert space.keys(vectors().bfloat16()).dtype == torch.float32


def test_a_projection_that_is_a_view_gives_the_keys_that_it_will_give_when_read_again(tmp_path: Path) -> None:
    space = replace(activations(), projection=torch.randn(F, R).T)
    save_file(space.tensors(), tmp_path / "space.safetensors")
    again = space_from_tensors(load_file(tmp_path / "space.safetensors"))
    assert isinstance(again, KeySpace) and torch.equal(again.keys(vectors()), space.keys(vectors()))


@spaces
def test_a_space_comes_back_bit_for_bit(space: Space, tmp_path: Path) -> None:
    save_file(space.tensors(), tmp_path / "space.safetensors")
    again = space_from_tensors(load_file(tmp_path / "space.safetensors"))
    assert type(again) is type(space) and again.size == space.size == R
    one, other = space.tensors(), again.tensors()
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    assert isinstance(space, KeySpace) or again == space


def test_spaces_of_relations_are_the_same_where_all_that_they_say_is() -> None:
    assert replace(RELATIONS) == RELATIONS
    for other in ({"reader": "b"}, {"size": 6}, {"threshold": 0.3}, {"unnamed_threshold": 0.3}):
        assert replace(RELATIONS, **other) != RELATIONS  # type: ignore[arg-type]


PARTS = [(space, name) for space in (activations(), RELATIONS) for name in space.tensors()]


@pytest.mark.parametrize(("space", "name"), PARTS, ids=[name for _, name in PARTS])
def test_a_part_of_another_shape_or_type_is_refused(space: Space, name: str) -> None:
    part = space.tensors()[name]
    wrong = [part[None], part.half(), part.to(torch.int32)]
    wrong += [part[:, :-1].clone()] if part.ndim == 2 else []
    wrong += [part[:-1].clone()] if part.ndim and name not in ("projection", "reader") else []
    for other in wrong:
        with pytest.raises(ValueError, match=rf"'{name}': '{other.dtype} .* make no space of keys"):
            space_from_tensors(space.tensors() | {name: other})


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("size", torch.tensor(0)),
        ("size", torch.tensor(-3)),
        ("thresholds", torch.tensor([0.0, 0.5], dtype=torch.float64)),
        ("thresholds", torch.tensor([0.5, 1.1], dtype=torch.float64)),
        ("thresholds", torch.tensor([0.5, torch.nan], dtype=torch.float64)),
        ("reader", torch.tensor([255, 254], dtype=torch.uint8)),
    ],
)
def test_what_no_reader_can_be_like_is_refused(name: str, part: Tensor) -> None:
    with pytest.raises(ValueError, match="make no space of keys"):
        space_from_tensors(RELATIONS.tensors() | {name: part})


@pytest.mark.parametrize(("space", "name"), PARTS, ids=[name for _, name in PARTS])
def test_a_part_that_is_missing_is_named(space: Space, name: str) -> None:
    left = space.tensors()
    del left[name]
    with pytest.raises(KeyError, match="mean" if name == "reader" else name):  # the reader's name tells them apart
        space_from_tensors(left)


@spaces
def test_what_belongs_to_nothing_is_refused(space: Space) -> None:
    for extra in ("more", *({"mean", "reader"} - set(space.tensors()))):
        with pytest.raises((KeyError, ValueError)):
            space_from_tensors(space.tensors() | {extra: torch.zeros(1)})
