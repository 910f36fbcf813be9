"""Which tokens can reach a key at all, found without comparing them with every key, or with all parts of one.

Keys gather round a few hundred centres, questions of one relation being alike. By the triangle inequality on the
sphere, a token reaches a key's floor only where its angle to the key's centre is at most the angle of the floor plus
that between key and centre. So one product with the centres passes over nearly every token, and changes nothing: what
it lets through is compared with the keys themselves. In the same way one product with the middle of a subject's parts
says which of them cannot be reached.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from wise.memory.key_space import BEGINNING, ENDS

CENTRES = 4
"""Centres per square root of the number of keys: the two products together are least near the root."""
FEW = 256
"""Keys up to which each is a centre of its own."""
SLACK = 2e-3
"""Radians by which float32 may mistake an angle: the last bits of a cosine near 1."""
AT_ONCE = 4096
UNHELD, NEVER = -1.0, 2.0
"""The reach of a centre that has no key, and a cosine that none has."""


def screen(keys: Tensor, floors: Tensor) -> tuple[Tensor, Tensor]:
    """Centres `[c, r]` of unit keys `[n, r]`, and for each the cosine `[c]` under which no key is reached.

    floors: `[n]` the cosine from which each key is.
    """
    if len(keys) == 0:
        return keys, floors
    count = len(keys) if len(keys) <= FEW else max(FEW, math.ceil(CENTRES * len(keys) ** 0.5))
    centres = keys[torch.linspace(0, len(keys) - 1, count).long()]
    nearest = torch.cat([(part @ centres.T).argmax(-1) for part in torch.split(keys, AT_ONCE)])
    apart = _angle(keys, centres[nearest])
    reach = torch.arccos(floors.clamp(-1, 1)) + apart + SLACK
    widest = reach.new_full((count,), UNHELD).scatter_reduce(0, nearest, reach, "amax")
    bounds = torch.where(widest == UNHELD, NEVER, torch.cos(widest.clamp(0, math.pi)))
    return centres, torch.where(widest >= math.pi, -NEVER, bounds)


def name_screen(keys: Tensor, parts: int, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Of subjects' keys `[n, parts s]` the middles of their ends `[n, s]`, and for each the cosine `[n]` under which a
    token leaves the subject below the floor, one number, even where its beginning is found.
    """
    if parts == 1:
        ends, least = keys[:, None], floor
    else:
        ends = keys.view(len(keys), parts // ENDS, ENDS, -1)[:, :, -1]
        least = (floor - BEGINNING) / (1 - BEGINNING)
    middles = normalize(ends.mean(1), dim=-1)
    reach = torch.arccos(least.clamp(-1, 1)) + _angle(ends, middles[:, None]).amax(-1) + SLACK
    return middles, torch.where(reach >= math.pi, -NEVER, torch.cos(reach.clamp(max=math.pi)))


def _angle(one: Tensor, other: Tensor) -> Tensor:
    """Between unit vectors, in radians; exact also where they hardly differ."""
    return 2 * torch.asin(((one - other).norm(dim=-1) / 2).clamp(max=1))
