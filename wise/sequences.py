"""From a call of `generate` and what it returned to the texts that were read: no pads, each row to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wise.errors import ConfigError
from wise.provenance import Text


def prompt_ids(args: Sequence[Any], given: Mapping[str, Any]) -> Tensor:
    """The ids `[batch, seq]` that `generate` was given. Raises ConfigError where it was given none."""
    ids = args[0] if args else given.get("inputs", given.get("input_ids"))
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.shape[1] or given.get("inputs_embeds") is not None:
        raise ConfigError(
            "return_routes=True needs the ids of the prompts, as input_ids of shape [batch, seq]; "
            f"{'inputs_embeds were' if given.get('inputs_embeds') is not None else type(ids).__name__ + ' was'} given"
        )
    return ids


def generated_texts(model: PreTrainedModel, ids: Tensor, given: Mapping[str, Any], output: Any) -> list[Text]:
    """One text for each sequence of `output`, beams and repeated prompts apart.

    ids: `[batch, seq]` of the prompts; given: what else `generate` was given.
    """
    sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
    stops, pad = _ids(model, given, "eos_token_id"), _ids(model, given, "pad_token_id")
    mask = _mask(ids, given.get("attention_mask"), stops, pad)
    several = len(sequences) // len(ids)  # rows of one prompt stand together
    by_words = given.get("stop_strings") or given.get("stopping_criteria") or _setting(model, given, "stop_strings")
    texts = []
    for row, sequence in enumerate(sequences.tolist()):
        prompt = mask[row // several].nonzero()[:, 0].tolist()
        new = _ended(sequence[ids.shape[1] :], stops, pad if by_words else set())
        places = (*prompt, *range(ids.shape[1], ids.shape[1] + len(new)))
        texts.append(Text(ids=tuple(sequence[i] for i in places), places=places, prompt_tokens=len(prompt)))
    return texts


def _ended(new: list[int], stops: set[int], pads: set[int]) -> list[int]:
    """A row up to its stop; without one, where a row may end otherwise, without the pads behind it."""
    end = next((place + 1 for place, token in enumerate(new) if token in stops), None)
    if end is None:
        end = len(new)
        while end and new[end - 1] in pads:
            end -= 1
    return new[:end]


def _mask(ids: Tensor, given: Tensor | None, stops: set[int], pad: set[int]) -> Tensor:
    """`[batch, seq]` bool: what is no pad. Where none is given, as transformers itself guesses it."""
    if given is not None:
        return given.bool().cpu()
    if pad and not pad & stops and bool(torch.isin(ids.cpu(), torch.tensor(sorted(pad))).any()):
        return ~torch.isin(ids.cpu(), torch.tensor(sorted(pad)))
    return torch.ones(ids.shape, dtype=torch.bool)


def _ids(model: PreTrainedModel, given: Mapping[str, Any], name: str) -> set[int]:
    value = _setting(model, given, name)
    if value is None:
        return set()
    return {int(value)} if isinstance(value, int) else {int(one) for one in torch.as_tensor(value).flatten().tolist()}


def _setting(model: PreTrainedModel, given: Mapping[str, Any], name: str) -> Any:
    """A setting of the call, or of its configuration, or of the model's."""
    if given.get(name) is not None:
        return given[name]
    own: Any = getattr(given.get("generation_config"), name, None)
    return own if own is not None else getattr(model.generation_config, name, None)
