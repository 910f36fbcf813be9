"""What is noted of a forward pass is what each of its rows has read, however the text came to be read."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from threading import Barrier, Thread, get_ident
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, BATCH, EOS, PAD, padded, small_batches, tiny_model
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, StaticCache
from transformers.cache_utils import StaticLayer

from wise.errors import ConfigError, UnsupportedModelError
from wise.memory.sequences import CACHE_NAMES, SequenceReader, TokenRows

two = pytest.mark.parametrize("model_type", ["llama", "gpt2"])
Sequences = list[list[int]]


class Watched:
    """A model, and what its reader tells from within each forward."""

    def __init__(self, model_type: str) -> None:
        self.model: Any = tiny_model(model_type)
        self.reader = SequenceReader(self.model.base_model)
        self.reader.attach()
        self.cache_name = next(n for n in CACHE_NAMES if n in inspect.signature(self.model.forward).parameters)
        self.seen: list[Sequences | str] = []
        """Of each forward the ids of all rows, or why they are not known."""
        self.by_thread: dict[int, list[Sequences]] = {}
        """The same, where the ids are known."""
        self.new: list[int] = []
        """Tokens of the first row that each forward reads."""
        self.meeting: Callable[[], object] = lambda: None
        self.model.get_input_embeddings().register_forward_hook(self._look)

    def _look(self, _module: nn.Module, args: tuple[Tensor], _output: Tensor) -> None:
        self.meeting()
        try:
            rows = self.reader.rows
        except ConfigError as error:
            self.seen.append(str(error))
            return
        read = args[0].flatten().tolist()
        assert rows.size == len(read)
        for ids, places in zip(rows.ids, rows.places, strict=True):
            assert ids.dtype == np.int64
            assert [read[place] for place in places] == ids[len(ids) - len(places) :].tolist()
        told = [ids.tolist() for ids in rows.ids]
        self.seen.append(told)
        self.by_thread.setdefault(get_ident(), []).append(told)
        self.new.append(len(rows.places[0]))

    @torch.no_grad()
    def read(self, ids: Any, cache: Any = None, **options: Any) -> Any:
        """The cache behind a forward over `ids`."""
        named = {} if cache is None else {self.cache_name: cache}
        return self.model(torch.as_tensor(ids), use_cache=True, **named, **options)[self.cache_name]

    def generate(self, rows: Sequence[Sequence[int]], extra: int = 0, **options: Any) -> Sequences:
        """All that came out, padding included."""
        options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": PAD} | options
        out: Sequences = self.model.generate(**padded(rows, extra), **options).tolist()
        return out


# -- rows -------------------------------------------------------------------------------------


def test_rows_are_selected_with_their_places_in_the_smaller_batch() -> None:
    ids = tuple(np.array(own) for own in ([1, 2, 3], [4, 5], [6], [7, 8, 9, 10]))
    places = tuple(np.array(own, dtype=np.int64) for own in ([1, 2], [4], [], [9, 10, 11]))  # of four rows of three
    rows, flat = TokenRows(ids=ids, places=places, size=12), torch.arange(12).view(4, 3)
    for chosen in ((3, 0, 2), (1,), (0, 1, 2, 3), (2, 3), ()):
        found = rows.select(chosen, 3)
        assert found.size == 3 * len(chosen)
        assert [own.tolist() for own in found.ids] == [ids[row].tolist() for row in chosen]
        left = flat[list(chosen)].flatten()
        assert [left[own].tolist() for own in found.places] == [places[row].tolist() for row in chosen]
    assert [own.tolist() for own in rows.select((3, 0, 2), 3).places] == [[0, 1, 2], [4, 5], []]


# -- every way of generating ------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "wider padding": {"extra": 5},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 2},
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_rows_are_what_was_read_in_every_way_of_generating_and_reading_changes_nothing(model_type: str) -> None:
    watched = Watched(model_type)
    for way, options in WAYS.items():
        watched.seen.clear()
        out = watched.generate(BATCH, **options)
        pads = [max(map(len, BATCH)) - len(row) + options.get("extra", 0) for row in BATCH]
        for step in watched.seen:
            assert not isinstance(step, str), (way, step)
            columns = pads[0] + len(step[0])  # that have been read: the first row is the longest
            assert step == [row[pad:columns] for row, pad in zip(out, pads, strict=True)], way
        assert columns == len(out[0]) - 1, way
        assert len(watched.seen) >= 8, way
        assert tiny_model(model_type).generate(
            **padded(BATCH, options.get("extra", 0)),
            **{"do_sample": False, "max_new_tokens": 8, "pad_token_id": PAD}
            | {name: option for name, option in options.items() if name != "extra"},
        ).tolist() == out, way


@two
def test_rows_follow_their_beams(model_type: str) -> None:
    watched = Watched(model_type)
    beams: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 6, "min_new_tokens": 6}
    out = watched.generate(BATCH, **beams)
    seen = list(watched.seen)
    watched.seen.clear()
    assert watched.generate(BATCH, use_cache=False, **beams) == out
    assert seen == watched.seen  # without a cache all that a row has read is in front of the model
    best = [[*row, *sequence[max(map(len, BATCH)) : -1]] for row, sequence in zip(BATCH, out[::3], strict=True)]
    assert all(sequence in seen[-1] for sequence in best)
    last = seen[-1]
    assert not isinstance(last, str) and len({tuple(row) for row in last}) > len(BATCH)


@two
def test_what_was_guessed_wrong_is_forgotten(model_type: str) -> None:
    watched = Watched(model_type)
    prompt = BATCH[0] * 3
    (out,) = watched.generate([prompt], max_new_tokens=16)
    for options in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": tiny_model(model_type, seed=1)}):
        watched.seen.clear()
        watched.new.clear()
        assert watched.generate([prompt], max_new_tokens=16, **options) == [out]
        wrong = 0
        for step, new in zip(watched.seen, watched.new, strict=True):
            assert not isinstance(step, str)
            known = len(step[0]) - new + 1  # what is new is guessed, but for its first token
            assert step[0][:known] == out[:known]
            wrong += step[0] != out[: len(step[0])]
        assert wrong, "no guess was wrong"


# -- what may be done to a cache --------------------------------------------------------------


@two
@pytest.mark.parametrize("static", [False, True])
def test_a_cache_is_cropped_and_emptied_and_filled_again(model_type: str, static: bool) -> None:
    watched = Watched(model_type)
    cache = StaticCache(watched.model.config, max_cache_len=32) if static else DynamicCache()
    if static and not hasattr(StaticLayer, "crop"):
        pytest.skip("a static cache can be cropped since transformers 5.24")
    assert watched.read([[5, 6, 7, 8], [9, 10, 11, 12]], cache) is cache
    cache.crop(-2)
    watched.read([[20, 21], [22, 23]], cache)
    assert watched.seen[-1] == [[5, 6, 20, 21], [9, 10, 22, 23]]
    cache.reset()
    rows = [[30, 31], [32, 33]] if static else [[30, 31], [32, 33], [34, 35]]  # a static one is of so many for good
    watched.read(rows, cache)
    watched.read([[40]] * len(rows), cache)
    assert watched.seen[-1] == [[*row, 40] for row in rows]


@two
def test_a_prefix_is_shared_by_copies_of_its_cache(model_type: str) -> None:
    watched = Watched(model_type)
    prefix = watched.read([[5, 6, 7]])
    one, other = copy.deepcopy(prefix), copy.deepcopy(prefix)
    watched.read([[20, 21]], one)
    watched.read([[30]], other)
    watched.read([[31]], other)
    watched.read([[22]], one)
    watched.read([[40]], prefix)
    behind = [[20, 21], [30], [30, 31], [20, 21, 22], [40]]
    assert watched.seen[1:] == [[[5, 6, 7, *own]] for own in behind]


@two
def test_rows_of_a_cache_are_repeated_chosen_and_put_in_another_order(model_type: str) -> None:
    watched = Watched(model_type)
    batch = padded([[5, 6, 7], [8]])
    cache = watched.read(batch["input_ids"], attention_mask=batch["attention_mask"])
    cache.batch_repeat_interleave(2)
    mask = torch.cat([batch["attention_mask"].repeat_interleave(2, 0), torch.ones(4, 1, dtype=torch.long)], dim=1)
    watched.read([[20], [21], [22], [23]], cache, attention_mask=mask)
    assert watched.seen[-1] == [[5, 6, 7, 20], [5, 6, 7, 21], [8, 22], [8, 23]]
    cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
    cache.batch_select_indices(torch.tensor([0, 2]))
    mask = torch.cat([mask[[3, 1]], torch.ones(2, 1, dtype=torch.long)], dim=1)
    watched.read([[30], [31]], cache, attention_mask=mask)
    assert watched.seen[-1] == [[8, 23, 30], [5, 6, 7, 21, 31]]


def test_where_layers_are_offloaded_the_first_is_fetched_again_behind_the_last() -> None:
    watched = Watched("llama")
    cache: Any = watched.read([[5, 6, 7]])
    fetched: list[int] = []
    for number, layer in enumerate(cache.layers[:-1]):
        layer.prefetch = lambda number=number: fetched.append(number)
    cache.prefetch_stream = nullcontext()
    cache.prefetch(len(cache.layers) - 1, only_non_sliding=False)
    assert fetched == [0]


# -- threads ----------------------------------------------------------------------------------


def test_each_thread_has_the_rows_of_its_own_forward() -> None:
    watched = Watched("llama")
    barrier = Barrier(2, timeout=60)
    watched.meeting = barrier.wait  # both are within a forward
    out: dict[int, Sequences] = {}

    def run(rows: Sequences) -> None:
        out[get_ident()] = [*rows, *watched.generate(rows, min_new_tokens=6, max_new_tokens=6)]

    threads = [Thread(target=run, args=(rows,)) for rows in ([[5, 6, 7, 8]], [[40, 41, 42], [50, 51, 52]])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(out) == 2
    for ident, told in out.items():
        prompts, sequences = told[: len(told) // 2], told[len(told) // 2 :]
        assert watched.by_thread[ident] == [[row[: len(prompts[0]) + n] for row in sequences] for n in range(6)]
    with pytest.raises(ConfigError, match="no forward pass has run in this thread"):
        _ = watched.reader.rows


def test_rows_are_shown_for_the_length_of_a_block() -> None:
    reader = SequenceReader(tiny_model("llama").base_model)
    rows = TokenRows(ids=(np.array([1]),), places=(np.array([0]),), size=1)
    with reader.showing(rows):
        assert reader.rows is rows
    with pytest.raises(ConfigError, match="no forward pass has run"):
        _ = reader.rows
    reader.rows = other = rows.select((), 1)
    with pytest.raises(KeyError), reader.showing(rows):
        raise KeyError
    assert reader.rows is other


def test_a_copy_of_a_model_has_a_reader_of_its_own() -> None:
    watched = Watched("llama")
    watched.read([[5, 6]])
    model, reader = copy.deepcopy((watched.model, watched.reader))
    with pytest.raises(ConfigError, match="no forward pass has run"):
        _ = reader.rows
    watched.read([[7]])
    with torch.no_grad():
        model(torch.tensor([[8, 9]]))
    assert [rows.ids[0].tolist() for rows in (watched.reader.rows, reader.rows)] == [[7], [8, 9]]
    reader.remove()
    assert not model.base_model._forward_pre_hooks and watched.model.base_model._forward_pre_hooks


# -- continuous batching ----------------------------------------------------------------------


def continuously(watched: Watched, rows: Sequences, page: int = 16, **options: Any) -> Sequences:
    """What each request read and said, requests packed into one ragged row of at most 16 tokens."""
    out = watched.model.generate_batch(
        rows,
        generation_config=GenerationConfig(
            **{"do_sample": False} | options, eos_token_id=EOS, pad_token_id=PAD, max_new_tokens=8
        ),
        continuous_batching_config=small_batches(page),
        warmup=False,
        progress_bar=False,
    )
    assert not any(request.error for request in out.values())
    return [[*request.prompt_ids, *request.generated_tokens] for request in out.values()]


@two
@pytest.mark.parametrize(
    ("page", "forks"), [(4, 3), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((4, 1), (16, 1), (16, 3)))]
)
def test_requests_that_are_packed_into_one_row_are_told_apart(model_type: str, page: int, forks: int) -> None:
    """Pages are used again by later requests; some begin alike and share them; those that fork copy them."""
    watched = Watched(model_type)
    rows = [*BATCH, [*BATCH[0], 14], [*BATCH[0], 14, 15], list(range(50, 75))]
    torch.manual_seed(0)
    options = {} if forks == 1 else {"do_sample": True, "num_return_sequences": forks}
    for order in (rows, rows[::-1], rows[2:]):
        watched.seen.clear()
        whole = continuously(watched, order, page, **options)
        assert len(whole) == forks * len(order) and all(len(one) > 3 for one in whole)
        found = set()
        for step in watched.seen:
            assert not isinstance(step, str), step
            for ids in step:
                assert any(ids == one[: len(ids)] for one in whole), ids
                found.add(tuple(ids))
        assert {tuple(one[:-1]) for one in whole} <= found, "a request was not read to its end"
    assert len(watched.seen) > 8


def test_where_the_paged_cache_has_forgotten_the_beginning_that_is_said() -> None:
    watched = Watched("mistral")
    continuously(watched, BATCH)
    told = [step for step in watched.seen if isinstance(step, str)]
    assert told and all("not all tokens of a request are in the paged cache any more" in reason for reason in told)
    assert not isinstance(watched.seen[0], str), "the first tokens are within the window"


def test_with_a_block_table_pages_cannot_be_read() -> None:
    watched = Watched("llama")
    watched.reader.remove()
    put = watched.model.base_model.register_forward_pre_hook(
        lambda _m, args, given: (args, given | {"block_table": torch.zeros(1)}), with_kwargs=True
    )
    watched.reader = SequenceReader(watched.model.base_model)
    watched.reader.attach()
    take = watched.model.base_model.register_forward_pre_hook(
        lambda _m, args, given: (args, given | {"block_table": None}), with_kwargs=True
    )
    continuously(watched, BATCH[:1])
    put.remove(), take.remove()
    assert all("set max_blocks_per_request=0 and use_cuda_graph=False" in str(step) for step in watched.seen)


# -- where the ids are not known --------------------------------------------------------------


@two
def test_a_cache_that_was_filled_without_the_reader_is_refused(model_type: str) -> None:
    watched, plain = Watched(model_type), tiny_model(model_type)
    cache = DynamicCache()
    plain(torch.tensor([[5, 6, 7]]), use_cache=True, **{watched.cache_name: cache})
    watched.read([[8]], cache)
    assert watched.seen == [
        "mode='hybrid' goes by token ids, and the cache holds at least 3 tokens of which 0 were read by this wrapped "
        "model: fill caches with the wrapped model itself"
    ]
    with pytest.raises(ConfigError, match="3 tokens of which 0"):
        _ = watched.reader.rows


@two
def test_a_cache_that_was_filled_in_part_without_the_reader_is_refused(model_type: str) -> None:
    watched, plain = Watched(model_type), tiny_model(model_type)
    cache = watched.read([[5, 6, 7]])
    plain(torch.tensor([[8]]), use_cache=True, **{watched.cache_name: cache})
    watched.read([[9]], cache)
    assert "the cache holds at least 4 tokens of which 3 were read" in str(watched.seen[-1])


@two
def test_embeddings_in_the_place_of_ids_are_refused(model_type: str) -> None:
    watched = Watched(model_type)
    embedded = watched.model.get_input_embeddings()(torch.tensor([BATCH[0]]))
    watched.model(inputs_embeds=embedded)
    with pytest.raises(ConfigError, match="inputs_embeds"):
        _ = watched.reader.rows
    watched.read([BATCH[0]])
    assert watched.seen[-1] == [BATCH[0]]


def test_a_mask_that_is_no_tensor_says_nothing_about_padding() -> None:
    watched = Watched("llama")
    with pytest.raises((AttributeError, TypeError, ValueError, RuntimeError)):  # the model's own
        watched.read([[5, 6]], attention_mask="flex")
    with pytest.raises(ConfigError, match="type str"):
        _ = watched.reader.rows


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_masks_of_four_dimensions_tell_padding_too(kind: torch.dtype) -> None:
    watched = Watched("llama")
    seen = torch.tensor([[True, True, True], [False, True, True]])
    allowed = torch.ones(3, 3, dtype=torch.bool).tril() & seen[:, None, None, :]
    mask = allowed if kind is torch.bool else torch.where(allowed, 0.0, torch.finfo(kind).min)
    watched.read([[5, 6, 7], [PAD, 8, 9]], attention_mask=mask)
    assert watched.seen == [[[5, 6, 7], [8, 9]]]


def test_a_module_that_takes_no_ids_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="input_ids"):
        SequenceReader(nn.Linear(2, 2))


def test_a_cache_that_does_not_say_what_it_holds_is_refused() -> None:
    """A decoded token would be taken for a whole text."""
    model = nn.Module()
    model.forward = lambda input_ids, cache=None: None  # type: ignore[method-assign, misc, assignment]
    reader = SequenceReader(model)
    reader.attach()
    model(torch.tensor([[5, 6]]))
    assert [row.tolist() for row in reader.rows.ids] == [[5, 6]]
    model(torch.tensor([[7]]), cache=object())
    with pytest.raises(ConfigError, match="object does not say"):
        _ = reader.rows


def test_without_the_reader_the_model_is_as_it_was() -> None:
    watched = Watched("llama")
    watched.reader.remove()
    cache: Any = watched.read([[5, 6, 7]])
    assert len(cache.layers) == watched.model.config.num_hidden_layers
    assert not watched.model.base_model._forward_pre_hooks and not watched.model.base_model._forward_hooks
