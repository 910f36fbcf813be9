"""What the tokens before carry: the value vectors that the base's own attention keeps of them.

A route may ask whether a subject was named before. No state of our own is kept for that: the base's cache holds a
value vector for every token of the sequence, and the base's mask says which token may see which. Both are read as one
block's attention gets them, so padding, beams, chunked prefill, static and sliding caches and packed requests are the
base's business and stay right here. Value vectors are not turned by position, as keys often are.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from wise.errors import UnsupportedModelError

CACHE_NAMES = ("cache", "past_key_values", "layer_past")
"""What attention calls its cache, over the architectures and releases of transformers."""


class ContextReader:
    """Reads what one attention module attends to. Holds the last forward's, and nothing older."""

    def __init__(self, attention: nn.Module) -> None:
        """Raises UnsupportedModelError where `attention` takes no cache or no mask."""
        self._signature = inspect.signature(attention.forward)
        found = [name for name in CACHE_NAMES if name in self._signature.parameters]
        if not found or "attention_mask" not in self._signature.parameters:
            raise UnsupportedModelError(
                f"{type(attention).__name__} takes {', '.join(self._signature.parameters)}: a cache "
                f"({' or '.join(CACHE_NAMES)}) and an attention_mask were expected; use mode='retrieve'"
            )
        self._cache_name = found[0]
        self.recorded: Tensor | None = None
        """`[rows, heads, tokens, size]` value vectors that the last forward could attend to, as attention got them."""
        self.mask: Tensor | None = None
        """Which of them each new token may see; None: those before it."""
        self._handle = attention.register_forward_pre_hook(self._attend, with_kwargs=True)

    @property
    def values(self) -> Tensor | None:
        """`[rows, tokens, v]` the same, one vector for each token. A copy: a router takes only the rows it needs."""
        return None if self.recorded is None else self.recorded.transpose(1, 2).flatten(2)

    def beside(self, activation: Tensor, places: Tensor, count: int) -> Tensor:
        """What a question is compared by: activations `[n, f]` of all tokens that the last forward read, float32, of
        which those at `places` `[m]`, and behind each what attention keeps of the last tokens that it sees (`recent`):
        `[m, f + count v]`.
        """
        if not count:
            return activation[places]
        if self.recorded is None:
            raise RuntimeError("attention was not run: is it part of the model's forward?")
        width = len(activation) // len(self.recorded)
        return torch.cat([activation[places], recent(self.recorded, self.mask, places, width, count)], dim=-1)

    def remove(self) -> None:
        """Leaves the module as it was."""
        self._handle.remove()

    def _attend(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = kwargs
        if self._cache_name not in kwargs or "attention_mask" not in kwargs:
            given = self._signature.bind_partial(*args, **kwargs).arguments
        self.mask = given.get("attention_mask")
        own = given.get(self._cache_name)
        if own is None or self._cache_name in kwargs:
            return args, {**kwargs, self._cache_name: _Recorder(self, own)}
        place = list(self._signature.parameters).index(self._cache_name)
        return (*args[:place], _Recorder(self, own), *args[place + 1 :]), kwargs

    def record(self, values: Tensor) -> None:
        """values: `[rows, heads, tokens, size]`."""
        self.recorded = values


def recent(values: Tensor, mask: Tensor | None, places: Tensor, width: int, count: int) -> Tensor:
    """Value vectors of the last `count` tokens that each token sees, the last first; nought where there are fewer.

    values: `[rows, heads, tokens, size]`; places `[m]`: of the `width` new tokens of all rows, one row after the other;
    returns float32 `[m, count * heads * size]`.
    """
    rows, tokens = places // width, values.shape[2]
    seen = visible(mask, rows, places % width, width, tokens)
    last = torch.where(seen, torch.arange(tokens, device=seen.device), -1).topk(min(count, tokens), dim=-1).values
    last = pad(last, (0, count - last.shape[1]), value=-1)
    found = values[rows[:, None], :, last.clamp(min=0)].float()  # [m, count, heads, size]
    return found.masked_fill((last < 0)[..., None, None], 0.0).flatten(1)


def joined(values: Tensor, before: int) -> Tensor:
    """Value vectors of a sequence `[tokens, v]`, behind each those of the tokens before it: `[tokens, (1 + before) v]`.

    The nearest first; nought where there are none.
    """
    padded = pad(values, (0, 0, before, 0))
    return torch.cat([padded[before - n : before - n + len(values)] for n in range(before + 1)], dim=-1)


def visible(mask: Tensor | None, row: int | Tensor, places: Tensor, width: int, tokens: int) -> Tensor:
    """Which of its row's tokens each new token sees: places `[m]` of `width` new ones -> `[m, tokens]` bool.

    row: that of all, or of each `[m]`.
    mask: as attention is given it, `[rows or 1, 1, width, at least tokens]`, bool or added; None is a causal one.
    """
    if mask is None:
        return torch.arange(tokens, device=places.device) <= (places + tokens - width)[:, None]
    own = mask[row if len(mask) > 1 else 0, 0, places, :tokens]
    return own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2


class _Recorder:
    """A cache that tells the reader what it gives to attention; in place of none, one that keeps nothing."""

    def __init__(self, reader: ContextReader, own: Any) -> None:
        self._reader, self._own = reader, own

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._own is not None:
            keys, values = self._own.update(keys, values, *args, **kwargs)
        self._reader.record(values)
        return keys, values

    def get_seq_length(self, *args: Any) -> int:
        return 0 if self._own is None else int(self._own.get_seq_length(*args))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)
