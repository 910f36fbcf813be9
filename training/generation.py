"""Generation with the base: greedy up to the model's own stop, or sampled; padding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from wise.memory.modules import execution_device

BATCH = 64
LONGER, SPARE = 1.4, 16
"""A prompt longer than another by this factor and so many tokens does not share its batch: padding costs time."""
UNPADDED: WeakValueDictionary[int, PreTrainedConfig] = WeakValueDictionary()
"""By their ids, the configurations of models that answer otherwise if a row is left-padded, as `wise.training.splice`
finds out: only prompts of one length share a batch. Copies of a model share its configuration."""
DEFAULT_CONTEXT = 2048
"""Context of models whose configuration gives none (ALiBi)."""

Check = Callable[[], None]
"""Called between two steps of what takes long. What it raises ends the work, with nothing changed."""
_CHECK: ContextVar[Check | None] = ContextVar("check", default=None)


@contextmanager
def checking(check: Check | None) -> Iterator[None]:
    """`check` is called between two steps of what this thread does in a `with` block, the check itself excepted."""
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def between_steps() -> None:
    """Stands between two steps of what takes long: calls the check of `checking`, if there is one."""
    check = _CHECK.get()
    if check is not None:
        with checking(None):
            check()


def context_length(model: PreTrainedModel) -> int:
    """Tokens that the model sees at once."""
    config = model.config.get_text_config()
    lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "seq_length"))
    return next((int(length) for length in lengths if length and length > 0), DEFAULT_CONTEXT)


@torch.no_grad()
def greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Collection[int],
    max_new_tokens: int | Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """The greedy continuation of each prompt, up to and including its first stop.

    `max_new_tokens` may differ per prompt, and ends at the model's context. Prompts of like length share a batch,
    left-padded. `progress` is called with the number of prompts that are done.
    """
    context = context_length(model)
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    limits = [max(1, min(n, context - len(p))) for n, p in zip(limits, prompts, strict=True)]
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0
    for rows in _batches(prompts, limits, context, unpadded=id(model.config) in UNPADDED):
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=max(limits[i] for i in rows),
            eos_token_id=sorted(stops),
            pad_token_id=min(stops),
        )
        between_steps()
        out = _continued(model, [prompts[i] for i in rows], settings)
        for i, row in zip(rows, out, strict=True):
            answers[i] = until_stop(row, stops)[: limits[i]]
        done += len(rows)
        progress(done)
    return answers


def until_stop(ids: list[int], stops: Collection[int]) -> list[int]:
    """Generated ids up to the first stop, which is the last of them."""
    return ids[: next((place + 1 for place, token in enumerate(ids) if token in stops), len(ids))]


def _batches(prompts: Sequence[Sequence[int]], limits: Sequence[int], context: int, unpadded: bool) -> list[list[int]]:
    """Rows that share a batch. No prompt exceeds the context because of the limit of another one."""
    batches: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), limits[i])):
        lengths = [len(prompts[j]) for j in (batches[-1] if batches else [])]
        longest = max((*lengths, len(prompts[i])))
        apart = bool(lengths) and (longest > LONGER * min(lengths) + SPARE or (unpadded and longest > min(lengths)))
        if not batches or len(batches[-1]) == BATCH or longest + limits[i] > context or apart:
            batches.append([])
        batches[-1].append(i)
    return batches


@torch.no_grad()
def sample(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, stops: Collection[int], tokens: int, seed: int
) -> list[list[int]]:
    """`tokens` more tokens after each prompt, drawn from the model, whatever stops it. Global random state stays."""
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        top_k=0,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        eos_token_id=sorted(stops),
        pad_token_id=min(stops),
    )
    device = execution_device(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**64)
        drawn = _continued(model, prompts, settings)
    return [[*prompt, *new] for prompt, new in zip(prompts, drawn, strict=True)]


def without_settings(model: PreTrainedModel) -> PreTrainedModel:
    """The model without generation settings of its own: `generate` would take what a call leaves open, such as a
    repetition penalty, from them. A copy that shares all else, so that other threads keep the settings."""
    bare = copy.copy(model)
    bare._compiled_call_impl = model._compiled_call_impl  # which a copy does not get
    bare.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return bare


class _Checking(StoppingCriteria):
    """Stops at no token, and checks after each."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        between_steps()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _continued(model: PreTrainedModel, prompts: Sequence[Sequence[int]], settings: GenerationConfig) -> list[list[int]]:
    ids, mask = left_pad(prompts, device=execution_device(model))
    checks = {"stopping_criteria": StoppingCriteriaList([_Checking()])} if _CHECK.get() is not None else {}
    out: Tensor = without_settings(model).generate(  # type: ignore[operator]
        ids, attention_mask=mask, generation_config=settings, **checks
    )
    new: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return new


def left_pad(rows: Sequence[Sequence[int]], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[batch, longest]`; pads are 0 and masked."""
    ids, mask = right_pad([row[::-1] for row in rows], device=device)
    return ids.flip(1), mask.flip(1)


def right_pad(rows: Sequence[Sequence[int]], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same with the pads on the right, where no token of a causal model sees them."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.tensor([i for row in rows for i in row], dtype=torch.long)
    return ids.to(device), mask.long().to(device)
