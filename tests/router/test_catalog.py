"""The catalog of a memory is the same however it came about, and an edit beside many costs what one alone does."""

from __future__ import annotations

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import wise
from wise.memory.slot import AnswerSlot
from wise.memory.state import MemoryState
from wise.router import catalog as rooms
from wise.router.catalog import EMPTY, Catalog, catalog_of, difference
from wise.router.subjects import may_name, names_of

SUBJECTS = ("Rome", "the Rome", "New York", "New York City", "São Paulo", "东京", "C++", "York", None)
PROMPTS = ("The mayor of {} is", "Who runs {}?", "{}", "They moved to {}", "{} opens at", "Name the mayor of {}.")
SIZE = 6


def edit(number: int, rng: random.Random) -> wise.Edit:
    subject = rng.choice(SUBJECTS)
    prompt = rng.choice(PROMPTS).format(subject or "the office")
    aliases = (f"the {number}th", "Rome") if subject and number % 3 == 0 else ()
    further = (f"what of {subject}, number {number}",) if number % 4 == 0 else ()
    return wise.Edit(
        id=f"e{number}", prompt=prompt, target="x", subject=subject, aliases=aliases, paraphrases=further
    )


def slot(number: int, edit: wise.Edit, tokens: int) -> AnswerSlot:
    return AnswerSlot(
        id=number,
        edit_ids=(edit.id,),
        scores=(0.5,),
        values=torch.zeros(tokens, 1),
        ids=torch.arange(tokens),
        counts=torch.tensor([0, tokens]),
        features=1,
    )


def keys(generator: torch.Generator) -> Tensor:
    return normalize(torch.randn(3, SIZE, generator=generator), dim=-1).half()


def added(state: MemoryState, edit: wise.Edit, tokens: int, generator: torch.Generator) -> MemoryState:
    return replace(
        state,
        edits=(*state.edits, edit),
        slots=(*state.slots, slot(len(state.slots), edit, tokens)),
        keys={**state.keys, edit.id: keys(generator)},
    )


def told(catalog: Catalog) -> dict[str, object]:
    """All that a catalog says, in no order where it has none."""
    generator = torch.Generator().manual_seed(7)
    queries = [*torch.randn(5, SIZE, generator=generator), torch.zeros(SIZE)]
    texts = [edit.prompt for edit in catalog.state.edits] + ["new york city and rome", "in são paulo 东京", "e5"]
    mentions = {text: catalog.subjects.mentions(text) for text in texts}
    ids = [edit.id for edit in catalog.state.edits]
    return {
        "edits": dict(catalog.edits),
        "slots": dict(catalog.slots),
        "mentions": mentions,
        "owners": {m.name: sorted(catalog.subjects.owners(m)) for m in chain(*mentions.values())},
        "nameless": set(catalog.nameless),
        "ends": dict(catalog.ends),
        "unmarked": dict(catalog.unmarked_ends),
        "finished": {sentence: set(ids) for sentence, ids in catalog.finished.items()},
        "longest": catalog.longest,
        "nearest": [catalog.nearest(query, 4) for query in queries] if ids else [],
        "near": [catalog.near(query[None], 0.6) for query in queries] if ids else [],
    }


def afresh(state: MemoryState) -> Catalog:
    return EMPTY.after(state, [], state.edits)


@pytest.mark.parametrize("seed", range(8))
def test_a_catalog_does_not_show_how_the_memory_came_about(seed: int) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    state = MemoryState()
    held: list[tuple[Catalog, dict[str, object] | None]] = []
    for number in range(60):
        live = [edit.id for edit in state.edits]
        turn = rng.random()
        if live and turn < 0.25:
            state = state.without(rng.sample(live, rng.randint(1, min(3, len(live)))))
        elif live and turn < 0.35:  # the same edit is written anew, under another slot and with other keys
            again = next(e for e in state.edits if e.id == rng.choice(live) or e is state.edits[-1])
            state = added(state.without([again.id]), again, rng.randint(1, 9), generator)
        elif live and turn < 0.45:  # an edit of the same id says something else
            gone = state.edits[rng.randrange(len(live))]
            other = replace(edit(number, rng), id=gone.id)
            state = added(state.without([gone.id]), other, rng.randint(1, 9), generator)
        elif held and turn < 0.5:
            state = rng.choice(held)[0].state
        else:
            state = added(state, edit(number, rng), rng.randint(1, 9), generator)
        catalog = catalog_of(state)
        assert catalog_of(state) is catalog
        if rng.random() < 0.5:
            assert told(catalog) == told(afresh(state))
        held.append((catalog, told(catalog)) if rng.random() < 0.3 else (catalog, None))
        del held[: -rng.randint(1, 12)]
    for catalog, said in held:
        assert said is None or told(catalog) == said, "a version that is in use has changed"
        assert told(catalog) == told(afresh(catalog.state))


def test_one_more_edit_has_no_other_edit_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    state = MemoryState()
    for number in range(50):
        state = added(state, edit(number, rng), 2, generator)
    read: list[str] = []

    def noted(of: wise.Edit) -> tuple[str, ...]:
        read.append(of.id)
        return names_of(of)

    monkeypatch.setattr(rooms, "names_of", noted)
    held = catalog_of(state)
    assert {*read} == {*state.edit_ids}
    _ = held.questions
    read.clear()
    more = added(state, edit(50, rng), 2, generator)
    less = state.without(["e7"])
    for other, expected in ((more, {"e50"}), (less, {"e7"}), (more.without(["e50"]), set())):
        _ = catalog_of(other).questions
        assert {*read} == expected
        read.clear()
    del held
    gc.collect()
    catalog_of(state)
    assert {*read} == {*state.edit_ids}, "what nobody uses is not kept"


def test_many_threads_are_told_the_same() -> None:
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    states = [MemoryState()]
    for number in range(30):
        states.append(added(states[-1], edit(number, rng), 2, generator))
    wanted = [told(afresh(state)) for state in states]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: told(catalog_of(states[n])), [*range(31)] * 3))
    assert found == wanted * 3


def test_a_difference_goes_by_the_objects() -> None:
    one, two, three = (wise.Edit(id=i, prompt="p", target="t") for i in "abc")
    twin = replace(two)
    assert difference([one, two], [one, two]) == difference([], []) == ([], [])
    assert difference([one, two], [one, two, three]) == ([], [three])
    assert difference([one, two, three], [two, three]) == ([one], [])
    gone, come = difference([one, two], [one, twin])
    assert gone[0] is two and come[0] is twin


def test_a_quick_look_misses_no_text_that_names_one() -> None:
    texts = ["in new york city", "SÃO PAULO’s mayor", "two Romes", "romantic", "C++ or C", "我住在东京。", "nothing"]
    assert may_name(texts, ["São Paulo"]) == {1}
    assert may_name(texts, ["the Rome"]) == {2}
    assert may_name(texts, ["C++", "东京"]) == {4, 5}
    assert may_name(texts, ["New York"]) >= {0}
    assert may_name(texts, []) == may_name(texts, ["…"]) == set()
