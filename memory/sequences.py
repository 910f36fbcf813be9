"""The token ids that a forward pass reads, each row from its beginning; the hybrid router routes by them.

A layer in the middle of a model sees activations and no tokens. The ids of earlier tokens are kept in the base's own
cache, as one more layer of it, so whatever is done to the cache (beam reordering, cropping, copying for a shared
prefix, repeating rows) is done to them too. Under transformers' continuous batching they are kept beside the paged
cache, by the same page indices.

The ids that a forward reads are stored per thread, so several threads can generate with one model.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import DynamicLayer

from wise.errors import ConfigError, UnsupportedModelError
from wise.memory.modules import restoring

CACHE_NAMES = ("cache", "past_key_values", "layer_past")
"""What a forward calls its cache, over the architectures and releases of transformers."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRows:
    """The sequences of one forward pass."""

    ids: tuple[Ids, ...]
    """Of each row all tokens up to the last that is read now, without padding."""
    places: tuple[Ids, ...]
    """Of each row the tokens that are new, as indices into the flattened activations `[n, f]`: the last of `ids`."""
    size: int
    """n: tokens of the forward pass, padding included."""

    def select(self, rows: Sequence[int], width: int) -> TokenRows:
        """These rows alone, of a forward of `width` tokens each."""
        moved = {row: width * (place - row) for place, row in enumerate(rows)}
        return TokenRows(
            ids=tuple(self.ids[row] for row in rows),
            places=tuple(self.places[row] + moved[row] for row in rows),
            size=width * len(rows),
        )


class SequenceReader:
    """Records the ids that a model reads; holds those of the last forward of each thread."""

    def __init__(self, model: nn.Module) -> None:
        """model: the module that is given `input_ids`, below its head where there is one.

        Raises UnsupportedModelError where it takes no ids.
        """
        decoder = getattr(model, "decoder", None)
        if isinstance(decoder, nn.Module) and "input_ids" in inspect.signature(decoder.forward).parameters:
            model = decoder  # OPT's head calls the decoder in the base model, and not the base model
        self._signature = inspect.signature(model.forward)
        parameters = self._signature.parameters
        if "input_ids" not in parameters:
            raise UnsupportedModelError(
                f"{type(model).__name__} takes {', '.join(parameters)}: input_ids were expected, by which "
                "mode='hybrid' knows what is asked; use mode='retrieve'"
            )
        self._thread = threading.local()
        self._paged: WeakKeyDictionary[Any, _Pages] = WeakKeyDictionary()
        self._model = model
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """From now on the ids are recorded, until `remove`."""
        self._handles.append(self._model.register_forward_pre_hook(self._before, with_kwargs=True))
        self._handles.append(self._model.register_forward_hook(self._after, with_kwargs=True))

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model has read nothing yet."""
        return {**vars(self), "_thread": None, "_paged": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _thread=threading.local(), _paged=WeakKeyDictionary())

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def rows(self) -> TokenRows:
        """What this thread's forward reads.

        Raises ConfigError where the ids are not known.
        """
        rows: TokenRows | str = getattr(self._thread, "rows", "no forward pass has run in this thread")
        if isinstance(rows, str):
            raise ConfigError(f"mode='hybrid' goes by token ids, and {rows}")
        return rows

    @rows.setter
    def rows(self, rows: TokenRows) -> None:
        self._thread.rows = rows

    @contextmanager
    def showing(self, rows: TokenRows) -> Iterator[None]:
        """`rows` of this thread is `rows` for the length of the block, and then what it was before."""
        thread_state = vars(self._thread)
        before = thread_state.copy()

        def restore() -> None:
            thread_state.clear()
            thread_state.update(before)

        with restoring(restore):
            self._thread.rows = rows
            yield

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self._arguments(args, kwargs)
        ids = given.get("input_ids")
        self._thread.new = None
        if torch.compiler.is_exporting():
            self._thread.rows = "a graph that is exported holds no lookup of them: export in mode='merge' or 'retrieve'"
        elif not isinstance(ids, Tensor):
            self._thread.rows = "inputs_embeds were given: give input_ids, or edit with mode='retrieve'"
        elif "write_index" in given and given.get("cache") is not None:
            self._thread.rows = self._read_pages(ids, given)
        else:
            self._thread.rows = self._read_rows(ids, given)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """The cache now holds the new tokens: so must its layer of ids."""
        new, self._thread.new = getattr(self._thread, "new", None), None
        cache = _cache_in(self._arguments(args, kwargs))
        if cache is None and isinstance(output, Mapping):
            cache = _cache_in(output)
        layers = getattr(cache, "layers", None)
        if new is None or not layers:
            return
        if isinstance(layers[-1], _IdsLayer):
            layers[-1].extend(new)
        else:
            layers.append(_IdsLayer(layers, new))

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, **dict(zip(self._signature.parameters, args, strict=False))}

    def _read_rows(self, ids: Tensor, given: Mapping[str, Any]) -> TokenRows | str:
        """Rows of a batch behind their cache."""
        ids = ids.detach()
        ids = ids[None] if ids.ndim == 1 else ids
        cache = _cache_in(given)
        layers = getattr(cache, "layers", None)
        if cache is not None and layers is None:
            return f"a {type(cache).__name__} does not say what it holds: use mode='retrieve'"
        before = layers[-1].ids if layers and isinstance(layers[-1], _IdsLayer) else ids[:, :0]
        past = before.shape[1]
        cached = 0 if cache is None or not hasattr(cache, "get_seq_length") else _tokens_in(cache)
        if cached != past:
            return (
                f"the cache holds at least {cached} tokens of which {past} were read by this wrapped model: fill "
                "caches with the wrapped model itself"
            )
        attended = _attended(given.get("attention_mask"), ids, past)
        if isinstance(attended, str):
            return attended
        new = self._thread.new = torch.where(attended, ids + 1, 0)
        table = (torch.cat([before.to(new.device), new], dim=1) if past else new).cpu().numpy()
        width, sequences, places = ids.shape[1], [], []
        for row, pages in enumerate(table):
            real = pages > 0
            sequences.append(pages[real] - 1)
            places.append(row * width + np.flatnonzero(real[past:]))
        return TokenRows(ids=tuple(sequences), places=tuple(places), size=ids.numel())

    def _read_pages(self, ids: Tensor, given: Mapping[str, Any]) -> TokenRows | str:
        """Requests packed into one row, as transformers' continuous batching does."""
        cache = given["cache"]
        if not hasattr(cache, "cache_allocators"):
            return "this release of transformers pages its cache in a way that is not known here: install a newer one"
        if given.get("block_table") is not None or (ids.is_cuda and torch.cuda.is_current_stream_capturing()):
            return (
                "block tables and CUDA graphs keep them from being read: set max_blocks_per_request=0 and "
                "use_cuda_graph=False in ContinuousBatchingConfig"
            )
        pages = self._paged.get(cache)
        if pages is None:
            pages = self._paged[cache] = _Pages(cache.cache_allocators)
        return pages.read(ids.detach().flatten().cpu().numpy(), given)


class _Pages:
    """The ids of the tokens in a paged cache: a page holds some tokens of one request."""

    def __init__(self, allocators: Mapping[str, Any]) -> None:
        """allocators: of the cache, by kind of attention. One that slides keeps only the last tokens of a request."""
        self._kind = "full_attention" if "full_attention" in allocators else next(iter(allocators))
        self._group = list(allocators).index(self._kind)
        allocator = allocators[self._kind]
        self._stride, self._page = allocator.block_physical_stride, allocator.tokens_per_page
        self._ids = np.zeros((0, self._page), dtype=np.int64)
        """By block and place in it, each one more; 0 where nothing was read."""
        copied = allocator.copy_blocks

        def copy_blocks(sources: list[int], targets: list[int]) -> None:
            copied(sources, targets)
            self._make_room(max([*sources, *targets], default=0))
            self._ids[targets] = self._ids[sources]

        allocator.copy_blocks = copy_blocks  # a request that forks begins with copies of pages

    def read(self, ids: Ids, given: Mapping[str, Any]) -> TokenRows | str:
        """ids: of all requests, one after the other."""
        write, read = (given[name][self._group].cpu().numpy() for name in ("write_index", "read_index"))
        ends, behind = given["cu_seq_lens_q"].tolist(), given["cu_seq_lens_k"][self._kind].tolist()
        positions = given["position_ids"].flatten().tolist()
        self._make_room(int(max(write.max(), read.max(initial=0))) // self._stride)
        sequences, places, is_whole = [], [], True
        for row, (start, stop) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
            if stop > start:  # others are padding
                past = self._ids[self._at(read[behind[row] : behind[row + 1] - (stop - start)])]
                is_whole = is_whole and len(past) == positions[start] and bool(past.all())
                sequences.append(np.concatenate([past - 1, ids[start:stop]]))
                places.append(np.arange(start, stop))
        self._ids[self._at(write[: ends[-1]])] = ids[: ends[-1]] + 1
        if not is_whole:
            return (
                "not all tokens of a request are in the paged cache any more, since attention slides or pages were "
                "moved: use generate"
            )
        return TokenRows(ids=tuple(sequences), places=tuple(places), size=len(ids))

    def _at(self, index: Ids) -> tuple[Ids, Ids]:
        return index // self._stride, index % self._stride

    def _make_room(self, block: int) -> None:
        if block >= len(self._ids):
            grown = np.zeros((2 * block + 1, self._page), dtype=np.int64)
            grown[: len(self._ids)] = self._ids
            self._ids = grown


class _IdsLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer of a cache that holds ids in the place of keys: `[rows, 1, tokens, 1]`, each one more, 0 for padding."""

    is_compileable = True

    def __init__(self, layers: Sequence[Any], ids: Tensor) -> None:
        """layers: the others of the cache; ids: `[rows, tokens]`."""
        super().__init__()  # type: ignore[no-untyped-call]
        for name in ("max_batch_size", "max_cache_len"):  # a static cache tells those of its layers
            if hasattr(layers[0], name):
                setattr(self, name, getattr(layers[0], name))
        self.is_initialized = True
        # Where every layer slides, masks are as wide as those; transformers takes the width from one that does not.
        self.is_sliding = all(getattr(layer, "is_sliding", False) for layer in layers)
        self.dtype, self.device = ids.dtype, ids.device
        self._first = next((layer for layer in layers if not getattr(layer, "is_sliding", False)), layers[0])
        self._set(ids)

    @property
    def ids(self) -> Tensor:
        """`[rows, tokens]`, each one more, 0 for padding."""
        return self.keys[:, 0, :, 0]  # type: ignore[index]

    def extend(self, ids: Tensor) -> None:
        self._set(torch.cat([self.ids.to(ids.device), ids], dim=1) if self.ids.shape[1] else ids)

    def reset(self) -> None:
        self._set(self.ids[:, :0])

    def prefetch(self) -> None:
        """Where layers are offloaded: the last layer is followed by the first."""
        self._first.prefetch()

    def _set(self, ids: Tensor) -> None:
        self.keys = ids[:, None, :, None]
        self.values = self.keys[..., :0]


def _tokens_in(cache: Any) -> int:
    """Tokens that a cache holds, at least: one of states alone tells whether there are any."""
    try:
        return int(cache.get_seq_length())
    except ValueError:  # no layer of it counts them
        return int(cache.has_previous_state())


def _cache_in(named: Mapping[str, Any]) -> Any:
    return next((value for name, value in named.items() if name in CACHE_NAMES and value is not None), None)


def _attended(mask: Any, ids: Tensor, past: int) -> Tensor | str:
    """`[rows, new]` bool: the tokens that are no padding; or why that is not known. mask: as a forward takes it."""
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    rows, new = ids.shape
    if isinstance(mask, BlockMask):
        first = past - max(0, past + new - mask.seq_lengths[1])
        row = torch.arange(rows, device=ids.device)[:, None].expand(rows, new)
        place = torch.arange(new, device=ids.device).expand(rows, new)
        return mask.mask_mod(row, torch.zeros_like(row), place, first + place)  # a real token sees itself
    if not isinstance(mask, Tensor):
        return f"an attention mask of type {type(mask).__name__} does not say which are padding: give it as a tensor"
    first = past - max(0, past + new - mask.shape[-1])  # one of a sliding window begins later
    attended = mask[..., first : first + new].to(ids.device)
    if attended.ndim == 2:
        return attended.bool().expand(rows, -1)
    attended = attended[:, 0]
    attended = attended if attended.dtype == torch.bool else attended > torch.finfo(attended.dtype).min / 2
    return attended.any(1).expand(rows, -1)  # a real token sees itself; no token sees padding
