"""Names that look like a subject: the nearest among others, and made-up ones."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from wise.lab.eval.routing.wording import normal, words

LEAST = 0.15
"""Share of common trigrams below which a name is not near."""
_TRIES = 20
# Swapping one of these alone leaves the same thing under another of its names.
_FIXED = frozenset(
    "the of and de la le du der die das von van di da del company corporation corp inc ltd limited group co plc ag "
    "gmbh jr sr junior senior sir saint st mr mrs dr lord lady king queen prince princess duke count band film series "
    "album song magazine newspaper city county district river lake mount island airport station".split()
)


def trigrams(name: str) -> frozenset[str]:
    """The runs of three characters of a name's normal form, a blank put around it."""
    padded = f" {normal(name)} "
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))


def same_name(one: str, other: str) -> bool:
    """The two may well name one thing: the same words, or all words of one in the other.

    >>> same_name("Martín Solares", "Martin Solares"), same_name("Lincoln", "Abraham Lincoln")
    (True, True)
    """
    first, second = set(words(one)), set(words(other))
    return first <= second or second <= first


class Names:
    """Subjects by their trigrams."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._trigrams = [trigrams(name) for name in self.names]
        self._holding: dict[str, list[int]] = defaultdict(list)
        for place, found in enumerate(self._trigrams):
            for trigram in found:
                self._holding[trigram].append(place)
        self._known = {normal(name) for name in self.names}
        self._uses = Counter(word for name in self.names for word in set(words(name)))

    def nearest(self, name: str) -> Iterator[str]:
        """Other names, those of the largest Jaccard index of trigrams first, none below `LEAST`."""
        wanted = trigrams(name)
        common = Counter(place for trigram in wanted for place in self._holding.get(trigram, ()))
        ranked = []
        for place, count in common.items():
            index = count / (len(wanted) + len(self._trigrams[place]) - count)
            if index >= LEAST and not same_name(name, self.names[place]):
                ranked.append((-index, place))
        for _, place in sorted(ranked):
            yield self.names[place]

    def made_up(self, name: str, rng: random.Random) -> Iterator[str]:
        """Names in which the most telling word of `name` is a word of another one that looks alike: a number for a
        number, a capital for a capital. None that is known."""
        parts = name.split()
        telling = [part for part in parts if _telling(part)]
        if len(parts) < 2 or not telling or not self.names:
            return
        # The rarest word, and of those the longest: another number or first name makes another thing of it.
        out = min(telling, key=lambda part: (self._uses[normal(part)], -len(part)))
        for _ in range(_TRIES):
            alike = [part for part in rng.choice(self.names).split() if _telling(part) and _shape(part) == _shape(out)]
            if not alike:
                continue
            swapped = " ".join(rng.choice(alike) if part == out else part for part in parts)
            if normal(swapped) not in self._known and not same_name(swapped, name):
                yield swapped


def _telling(part: str) -> bool:
    """A word that tells one thing from another: a number, a capital, or a longer word."""
    long_enough = len(part) > 3 or (len(part) > 1 and (part.isdigit() or part[0].isupper()))
    return long_enough and part.isalnum() and normal(part) not in _FIXED


def _shape(part: str) -> tuple[bool, bool]:
    return part.isdigit(), part[:1].isupper()
