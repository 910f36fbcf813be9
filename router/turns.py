"""Where questions stand in a sequence of ids: the turns of a chat, by its template; the sentences of plain text.

Every function here depends on the ids up to a token alone, so it does not matter how a sequence is cut into forward
passes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from wise.memory.sequences import Ids
from wise.router.subjects import Mention, find_subject, words

NEVER = sys.maxsize
"""A position that no text reaches."""
WINDOW = 128
"""Tokens of plain text that are read before a position."""
FINAL_MARKS = ".!。！"
"""Marks that finish a sentence which asks nothing."""
QUESTION_MARKS = "?？"
CLOSING = "\"'”’)]"
"""Quotes and brackets that may stand behind the last mark of a sentence."""
_CLOSED = rf"[{re.escape(CLOSING)}]*"
_SENTENCE_END = re.compile(
    rf"(?<=[{FINAL_MARKS}{QUESTION_MARKS}])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St)\.)(?<!\bMrs\.){_CLOSED}\s+|(?<=[。！？])|\n+"
)
"""Ends of sentences; not initials and a few titles."""
_SENTENCE_BEGIN = re.compile(r"(?:^|\n|[.!?:])\W*\w")
"""The first letter of a sentence, and what stands before it."""
_QUESTION = re.compile(rf"[{QUESTION_MARKS}]{_CLOSED}\s*$")
_LABEL = re.compile(r"^\W*\w+(?:\s+\w+)?\s*[:：](?:\s*(?:the|an?))?\s*$", re.IGNORECASE)
"""A label before an answer, such as "Answer:" or "Answer: the"."""
_FINISHED = re.compile(rf"[{FINAL_MARKS}]{_CLOSED}\s*$")

_MARKS = ",;(–—-"
"""Marks within a sentence."""
_UNFINISHED = re.compile(
    rf"(?:[{_MARKS}]|\b(?:and|or|but|who|whose|which|that|because|while|also|not))\s*$", re.IGNORECASE
)
"""Ends of a text after which no answer begins, except where an edit's own sentence ends so."""
LEADING = frozenset(
    "is are was were be been of in by to called as on at from with for a an the named than under after since until "
    "into within about".split()
)
"""Words after which a sentence expects its answer."""

REFERRING = frozenset("it its he him his she her hers they them their theirs there this that these those".split())
SHORT = 4
"""A question of so few words may refer to an earlier subject without any of these: "And the capital?"."""

Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The ids that a tokenizer's chat template puts around a user's text."""

    header: tuple[int, ...]
    """Before the text."""
    opening: tuple[int, ...]
    """After the text, up to where the answer begins."""
    system: tuple[int, ...] = ()
    """Before a system message that begins a chat; empty where a chat begins as plain text does."""

    @classmethod
    def learn(cls, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
        """None if the tokenizer has no template, or one that shows no fixed ids around a turn."""
        if not getattr(tokenizer, "chat_template", None):
            return None
        probes = _probes(tokenizer)
        try:
            before = [user_turn(probes[0]), {"role": "assistant", "content": probes[1]}]
            first = [render(tokenizer, [user_turn(text)]) for text in probes]
            later = [render(tokenizer, [*before, user_turn(text)]) for text in probes]
        except Exception:  # a template raises what it likes where it does not take such turns
            return None
        opening = commonprefix([row[::-1] for row in (*first, *later)])[::-1]
        ahead = [list(commonprefix(rows))[::-1] for rows in (first, later)]
        header = commonprefix(ahead)[::-1]
        if not header or not opening:
            return None
        return cls(header=tuple(header), opening=tuple(opening), system=_system_header(tokenizer, probes))

    def start(self, ids: Ids) -> int:
        """The position from which on these are a chat: that of the last token of its first header, opening or system
        part; NEVER if they hold none. A chat that is cut before its first opening is one too."""
        ends = [_ends(ids, part, 0)[:1] for part in (self.header, self.opening, self.system) if part]
        return min((end for found in ends for end in found), default=NEVER)

    def openings(self, ids: Ids, start: int) -> list[int]:
        """The last tokens of the openings that end at `start` or later, ascending."""
        return _ends(ids, self.opening, start)

    def question(self, ids: Ids, end: int) -> tuple[int, int]:
        """The user's text before the opening that ends at `end`: the first token, and the one after the last."""
        stop = end + 1 - len(self.opening)
        headers = _ends(ids[:stop], self.header, 0)
        return (headers[-1] + 1 if headers else 0), stop


def _system_header(tokenizer: PreTrainedTokenizerBase, probes: Sequence[str]) -> tuple[int, ...]:
    """The ids before a system message, or today's date in front of it; none where a chat begins as plain text does."""
    rows = []
    for text, today in zip(probes, ("31 December 1999", "Saturday, 2000-01-01", "2/1/2000"), strict=False):
        # A template cannot be given functions. Jinja takes out the line that holds the macro.
        dated = f"{{% macro strftime_now(format) %}}{today}{{% endmacro %}}\n{tokenizer.get_chat_template()}"
        try:
            rows.append(render(tokenizer, [{"role": "system", "content": text}, user_turn(text)], template=dated))
        except Exception:  # a template raises what it likes where it does not take such turns
            return ()
    ahead, plain = (commonprefix(each) for each in (rows, [tokenizer(text)["input_ids"] for text in probes]))
    return () if ahead == plain[: len(ahead)] else tuple(ahead)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    template: str | None = None,
) -> list[int]:
    """Ids of a conversation up to where the next answer begins.

    tools: JSON schemas of functions. template: None is the tokenizer's own.
    """
    return [int(i) for i in _templated(tokenizer, messages, tools, tokenize=True, chat_template=template)]


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The text of which `render` gives the ids."""
    return str(_templated(tokenizer, messages, tools, tokenize=False))


def _templated(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    **how: Any,
) -> Any:
    given: dict[str, Any] = {"tools": [dict(tool) for tool in tools] or None, "return_dict": False}
    chat = [dict(message) for message in messages]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, **given, **how)


def passage(text: str, mentions: Callable[[str], Sequence[Mention]]) -> str | None:
    """What plain text says last, to be answered or completed at its end; None where nothing is.

    It is the unfinished last sentence, or the question just asked. The sentence before it is included if the last one
    names no edited subject and refers back by a word such as "its", or is only a label.

    mentions: the edited subjects that a text names. A mark in one, or right behind it, may be part of its name.
    """
    found = list(sentences(text, mentions(text)))
    if not found or is_finished(text):
        return None
    last = found[-1]
    if len(found) > 1 and not mentions(last) and (_LABEL.search(last) or refers_back(last, short=0)):
        last = f"{found[-2].rstrip()} {last}"
    return last.strip() or None


def expects(text: str, ends: Collection[str]) -> bool | None:
    """Whether an unfinished sentence expects an answer at its end; None if that is not clear.

    ends: how the edits' own sentences end (`ending`); behind these one is expected as behind `LEADING`.
    """
    last = ending(text)
    if last in ends:
        return True
    if _UNFINISHED.search(text):
        return False
    return True if last in LEADING else None


def ending(text: str) -> str:
    """The last word, and a mark such as a comma behind it."""
    mark = text.rstrip()[-1:]
    return last_word(text) + (mark if mark and mark in _MARKS else "")


def last_word(text: str) -> str:
    """In lower case; empty if there is no word."""
    while text := text.rstrip():  # no word goes across a space
        head, _, tail = text.rpartition(" ")
        if found := words(tail):
            return found[-1].text
        text = head
    return ""


def refers_back(text: str, short: int = SHORT) -> bool:
    """The text may be about an earlier subject: it names none, and has a word such as "it" or very few words."""
    found = [word.text for word in words(text)]
    return find_subject(text) is None and (len(found) <= short or not REFERRING.isdisjoint(found))


def names_subject(text: str) -> bool:
    """Whether a text names a subject, edited or not. A capital that begins a sentence does not show one: "Thanks!"."""
    return find_subject(_SENTENCE_BEGIN.sub(lambda begin: begin.group().lower(), text)) is not None


def is_finished(text: str) -> bool:
    """Whether a text ends with a full stop or an exclamation mark, quotes and brackets behind it or not."""
    return bool(_FINISHED.search(text))


def last_sentence(text: str) -> str:
    """The last of several sentences, which is the question after a preface; a single sentence is returned as it is."""
    found = list(sentences(text))
    return found[-1].strip() if len(found) > 1 else text


def is_question(text: str) -> bool:
    """Whether a text ends with a question mark."""
    return bool(_QUESTION.search(text))


def sentences(text: str, names: Sequence[Mention] = ()) -> Iterator[str]:
    """The sentences of a text with what stands behind each.

    names: a mark within one ends no sentence, and neither does a name's own mark before a small letter."""
    start = 0
    for mark in _SENTENCE_END.finditer(text.rstrip()):
        at = mark.start()
        within = "\n" not in mark.group() and any(name.start < at < name.end for name in names)
        behind = any(name.end <= at and not text[name.end : at].strip(".!?") for name in names)
        if within or (behind and text[mark.end()].islower()):
            continue
        yield text[start : mark.end()]
        start = mark.end()
    if text[start:].strip():
        yield text[start:]


def _probes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that neither begin nor end alike for this tokenizer."""
    plain = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    texts = ["Alpha", "Is it so?", "Seven 7", *(str(tokenizer.decode([i])) for i in plain[len(plain) // 2 :][:64])]
    found: list[list[int]] = []
    kept = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        known = ids and tokenizer.unk_token_id not in ids and text.strip()
        if known and all(ids[0] != other[0] and ids[-1] != other[-1] for other in found):
            found.append(ids)
            kept.append(text)
    return kept[:3]


def user_turn(text: str) -> dict[str, str]:
    """A text as a user's message."""
    return {"role": "user", "content": text}


def _ends(ids: Ids, pattern: Sequence[int], start: int) -> list[int]:
    low = max(start, len(pattern) - 1)
    found = np.flatnonzero(ids[low:] == pattern[-1]) + low
    for back, token in enumerate(reversed(pattern)):
        found = found[ids[found - back] == token]
    return [int(end) for end in found]
