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


def visible(mask: Tensor | None, row: int, places: Tensor, width: int, tokens: int) -> Tensor:
    """Which of a row's tokens each of its new tokens sees: places `[m]` of `width` new ones -> `[m, tokens]` bool.

    mask: as attention is given it, `[rows or 1, 1, width, at least tokens]`, bool or added; None is a causal one.
    """
    if mask is None:
        return torch.arange(tokens, device=places.device) <= (places + tokens - width)[:, None]
    own = mask[row if len(mask) > 1 else 0, 0, :, :tokens][places]
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
