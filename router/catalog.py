"""The catalog of a state: look-ups over all of its edits.

It finds edits by the names in a text, by the nearest question and by a finished sentence, and knows the words at which
the edits' own sentences end. A catalog is immutable. The catalog of a new state is derived from that of the most
similar state in use, by the edits that were added and removed, so one more edit beside 100,000 costs the copying of
some dictionaries.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from wise.edits import Edit
from wise.memory.keys import KeyIndex
from wise.memory.slot import AnswerSlot
from wise.memory.state import MemoryState, common_prefix, gc_paused
from wise.router.sentences import ending, is_finished, is_question, last_word, sentences
from wise.router.subjects import SubjectIndex, names_of, words

Sentence = tuple[str, ...]
"""The words of a sentence, in lower case."""
ROUNDING = 0.01
"""Rounding error of a product of keys that is computed in another order."""


def masked_keys(keys: Tensor, names: Sequence[str]) -> Tensor:
    """The keys `[k, r]` for a question that names the subject: all but the first; all if the edit has no names."""
    return keys[1:] if names else keys


def own_texts(edit: Edit) -> list[str]:
    """The texts that ask an edit's question, each once: prompt, last message of its conversation, paraphrases."""
    return list(dict.fromkeys((edit.prompt, *(message.content for message in edit.messages[-1:]), *edit.paraphrases)))


def own_keys(keys: Tensor, edit: Edit) -> Tensor:
    """Those of the edit's own texts, and of its question with the answer."""
    return masked_keys(keys, names_of(edit))[: 1 + len(own_texts(edit))]


def own_centre(keys: Tensor, edit: Edit) -> Tensor:
    """`[1, r]` the centre of the relation nearest to an edit with a subject; `[0, r]` if its reader knows none."""
    return masked_keys(keys, names_of(edit))[1 + len(own_texts(edit)) :]


def own_vectors(keys: Tensor) -> Tensor:
    """`[2, r]` of the keys of an edit with a subject: its question, and the question with the answer."""
    return keys[1:3].float()


def whole_keys(keys: Tensor, names: Sequence[str]) -> Tensor:
    """The keys that a question which names no subject is compared with: the first, or all if the edit has no names."""
    return keys[:1] if names else keys


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
    """The index of the whole questions of a state's edits."""

    index: KeyIndex
    state: MemoryState

    def changes(self, state: MemoryState) -> tuple[Sequence[Edit], Sequence[Edit]]:
        """The edits to remove and to add so that the index is that of another state."""
        known_state, count = self.state, len(self.state.edits)
        keys = common_prefix([*known_state.keys.values()], [*state.keys.values()])
        if common_prefix(known_state.edits, state.edits) == count == keys:
            return (), state.edits[count:]  # as where edits were added
        old, new = known_state.by_id, state.by_id
        stayed = {i for i, edit in new.items() if old.get(i) is edit and known_state.keys[i] is state.keys[i]}
        removed = [edit for i, edit in old.items() if i not in stayed]
        return removed, [edit for i, edit in new.items() if i not in stayed]


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """Of one state. Edits are known by their ids, since slots are renumbered when one is removed."""

    state: MemoryState = field(default_factory=MemoryState)
    slots: Mapping[str, int] = field(default_factory=dict)
    """The slot of each edit."""
    subjects: SubjectIndex[str] = field(default_factory=SubjectIndex)
    nameless: Mapping[str, None] = field(default_factory=dict)
    """Ids of the edits that have no subject."""
    ends: Counter[str] = field(default_factory=Counter)
    """How the edits' own sentences end (`sentences.ending`), counted."""
    unmarked_ends: Counter[str] = field(default_factory=Counter)
    """Last words of those that do not name the subject before their end: nothing else shows that an answer begins."""
    finished: Mapping[Sentence, tuple[str, ...]] = field(default_factory=dict)
    """Ids of the edits that are asked for by a text which ends with this sentence: "Name the capital of France."."""
    longest: int = 0
    """The most values that a slot has."""
    earlier: Questions | None = None
    """The latest index among the catalogs that this one was derived from."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: it is immutable."""
        return self

    @property
    def edits(self) -> Mapping[str, Edit]:
        """The edits by their ids."""
        return self.state.by_id

    def after(self, state: MemoryState, removed: Sequence[Edit], added: Sequence[Edit]) -> Catalog:
        """The catalog of a state that has the edits of this one without `removed` and with `added`."""
        nameless = dict(self.nameless)
        ends, unmarked = Counter(self.ends), Counter(self.unmarked_ends)
        for edit in removed:
            nameless.pop(edit.id, None)
        nameless |= dict.fromkeys(edit.id for edit in added if not names_of(edit))
        for changed, by in ((removed, -1), (added, 1)):
            for text, marked in (sentence for edit in changed for sentence in _unfinished_sentences(edit)):
                ends[ending(text)] += by
                if not marked:
                    unmarked[last_word(text)] += by
        finished = dict(self.finished)
        for edit in removed:
            for sentence in _finished_sentences(edit):
                others = tuple(each for each in finished.pop(sentence) if each != edit.id)
                finished |= {sentence: others} if others else {}
        for edit in added:
            for sentence in _finished_sentences(edit):
                finished[sentence] = (*finished.get(sentence, ()), edit.id)
        slots, longest = self._slots(state)
        return Catalog(
            state=state,
            slots=slots,
            subjects=self.subjects.changed(_named(removed), _named(added)),
            nameless=nameless,
            ends=+ends,
            unmarked_ends=+unmarked,
            finished=finished,
            longest=longest,
            earlier=self.__dict__.get("questions", self.earlier),
        )

    def _slots(self, state: MemoryState) -> tuple[dict[str, int], int]:
        same = common_prefix(self.state.slots, state.slots)
        if same < len(self.state.slots):
            return EMPTY._slots(state)
        new = [slot for slot in state.slots[same:] if isinstance(slot, AnswerSlot)]
        longest = max((len(slot.ids) for slot in new), default=0)
        return {**self.slots, **{slot.edit_ids[0]: slot.id for slot in new}}, max(self.longest, longest)

    @cached_property
    def questions(self) -> Questions:
        """The whole questions of all edits."""
        with _building, gc_paused(), torch.autocast("cpu", enabled=False):
            return self.__dict__.get("questions") or self._questions()

    def _questions(self) -> Questions:
        state, keys = self.state, self.state.keys
        before = self.earlier or Questions(index=KeyIndex(next(iter(keys.values())).shape[1]), state=MemoryState())
        removed, added = before.changes(state)
        index = before.index.copy()
        for edit in removed:
            index.remove(edit.id)
        if added:
            sizes = np.array([keys[edit.id].shape[0] for edit in added])
            wanted = np.where([edit.id in self.nameless for edit in added], sizes, 1)
            first = np.repeat(sizes.cumsum() - sizes - (wanted.cumsum() - wanted), wanted)
            rows = torch.cat([keys[edit.id] for edit in added])[torch.from_numpy(first + np.arange(len(first)))]
            index.add_rows([edit.id for edit in added], wanted.tolist(), rows.float())
        return Questions(index=index, state=state)

    def namesakes(self, edit: Edit) -> list[str]:
        """Ids of the edits that share a name of this edit's subject; its own is one of them."""
        return list(dict.fromkeys(i for name in names_of(edit) for i in self.subjects.owners_of(name)))

    @cached_property
    def finished_ends(self) -> frozenset[str]:
        """The last words of the edits' finished sentences."""
        return frozenset(sentence[-1] for sentence in self.finished)

    def finished_by(self, text: str, *, whole: bool) -> str | None:
        """The id of the edit whose own finished text stands at the end of `text`, sentence by sentence and word by
        word. If there are several it is that of the longest one.

        whole: `text` is read from its beginning. Otherwise an edit's text may begin before it.
        """
        text_sentences, text_words = _sentences(text), _words(text)
        counts = dict[str, int]()
        for edit_id in self.finished.get(text_sentences[-1] if text_sentences else (), ()):
            for edit_text in _finished_texts(self.edits[edit_id]):
                edit_sentences, own_words = _sentences(edit_text), _words(edit_text)[-len(text_words) :]
                is_within = whole or len(edit_sentences) < len(text_sentences)
                if edit_sentences == text_sentences[-len(edit_sentences) :] if is_within else own_words == text_words:
                    counts[edit_id] = max(len(own_words), counts.get(edit_id, 0))
        return max(counts, key=lambda each: (counts[each], self.slots[each]), default=None)

    def nearest(self, vector: Tensor, count: int) -> list[str]:
        """Ids of the edits that own the `count` whole questions nearest to a vector `[r]`, found with FAISS."""
        nearest = self.questions.index.search(vector.float(), count)
        return list(dict.fromkeys(edit_id for _, edit_id in nearest))

    def near(self, vectors: Tensor, least: float) -> set[str]:
        """Ids of the edits with a whole question whose cosine to one of the vectors `[n, r]` may reach `least`."""
        return self.questions.index.within(vectors.float(), least - ROUNDING)


EMPTY = Catalog()
_living: WeakSet[Catalog] = WeakSet()
"""The catalogs in use, of all models."""
_lock, _building = threading.Lock(), threading.Lock()


def catalog_of(state: MemoryState) -> Catalog:
    """The catalog of a state, derived from the most similar one in use."""
    with _lock:
        living = list(_living)
    catalog = next((each for each in living if each.state is state), None)
    if catalog is None:
        best, removed, added = EMPTY, list[Edit](), state.edits
        for each in living:
            removed_edits, added_edits = difference(each.state.edits, state.edits)
            if len(removed_edits) + len(added_edits) < len(removed) + len(added):
                best, removed, added = each, removed_edits, tuple(added_edits)
        with gc_paused():
            catalog = best.after(state, removed, added)
        if best is EMPTY and state.keys:
            _ = catalog.questions  # takes a second where a memory was loaded; it is not left to the first question
        with _lock:
            _living.add(catalog)
    return catalog


def difference(before: Sequence[Edit], after: Sequence[Edit]) -> tuple[list[Edit], list[Edit]]:
    """The edits that were removed and added, compared by identity."""
    same = common_prefix(before, after)
    old, new = before[same:], after[same:]
    stayed = {*map(id, old)} & {*map(id, new)}
    return [e for e in old if id(e) not in stayed], [e for e in new if id(e) not in stayed]


def _named(edits: Iterable[Edit]) -> Iterable[tuple[str, str]]:
    return ((name, edit.id) for edit in edits for name in names_of(edit))


def _unfinished_sentences(edit: Edit) -> list[tuple[str, bool]]:
    """Each of the edit's wordings that is to be completed, and whether it names the subject before its end."""
    names = tuple(name.casefold() for name in names_of(edit))
    texts = [text for text in (edit.prompt, *edit.paraphrases) if not (is_question(text) or is_finished(text))]
    return [(text, bool(names) and not text.rstrip().casefold().endswith(names)) for text in texts]


def _finished_texts(edit: Edit) -> list[str]:
    return [text for text in (edit.prompt, *edit.paraphrases) if is_finished(text)]


def _finished_sentences(edit: Edit) -> list[Sentence]:
    """The last sentence of each of the edit's wordings that are finished, each once."""
    return list(dict.fromkeys(own[-1] for own in map(_sentences, _finished_texts(edit)) if own))


def _sentences(text: str) -> list[Sentence]:
    return [own for own in map(_words, sentences(text)) if own]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.text for word in words(text))
