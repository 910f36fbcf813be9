"""A trial of one model: an edit is made, said in every way of generating, and taken back without a trace."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tiny import BATCH, EOS, PAD, WordReader, generated, padded, text, tiny_tokenizer
from transformers import PreTrainedModel
from zoo import zoo_model

import wise
from wise.errors import WiseError
from wise.training.report import VERIFIED

WORKS, REFUSED, FAILED = "works", "refused", "failed"

PROMPT, TARGET = [50, 51, 52, 30], [60, 61]
EDIT = wise.Edit(id="e", prompt=text(PROMPT), target=text(TARGET), subject=text(PROMPT[:1]))
SETTINGS: dict[str, Any] = {"terminator": "", "bos": False, "max_steps": 100}


@dataclass(kw_only=True)
class Trial:
    """What came of it."""

    outcome: str = WORKS
    """`works`; `refused` when it is wrapped; `failed` at the step that `reason` begins with."""
    reason: str = ""
    traits: tuple[str, ...] = ()
    """What the model is made of, of `TRAITS`."""
    path: str = ""
    """The module at whose output edits are added."""
    steps: str = ""
    """What a training step runs, of `wise.training.splice.STEPS`."""
    pads: bool = True
    """Whether the bare model reads a left-padded row as it reads it alone. If not, an edit is not asked for so."""


class StepFailed(Exception):
    """A step did not give what it must."""


def attempt(model_type: str, **settings: Any) -> Trial:
    """Tries the model of this type; an error of any kind is an outcome, not raised."""
    trial, step = Trial(), "build"
    try:
        model = zoo_model(model_type)
        trial.traits = traits_of(model)
        step = "run the bare model"
        bare = behaviour(model)
        trial.pads = pads(model)
        step = "wrap"
        wrapped = wise.wrap(model, tiny_tokenizer(), wise.WiseConfig(**SETTINGS, **settings), reader=WordReader())
        trial.path = wrapped.target_module.path
        for name, act in STEPS.items():
            step = name
            if trial.pads or act is not say_padded:
                act(wrapped, bare)
            trial.steps = wrapped.trainer.spliced.steps
    except Exception as error:
        refused = step == "wrap" and isinstance(error, WiseError)
        trial.outcome = REFUSED if refused else FAILED
        trial.reason = str(error) if refused else f"{step}: {type(error).__name__}: {error}"
    return trial


Behaviour = dict[str, list[Any]]


def behaviour(model: Any) -> Behaviour:
    """What a model gives for `BATCH`, row by row and left-padded, and for the edited prompt."""
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([row])).logits for row in [*BATCH, PROMPT]]
        padded_logits = model(**padded(BATCH)).logits
    return {
        "logits": logits[:-1],
        "left-padded logits": [padded_logits],
        "left-padded": generated(model, BATCH, max_new_tokens=4),
        "the prompt": [logits[-1], *generated(model, [PROMPT], max_new_tokens=4)],
    }


def pads(model: Any) -> bool:
    """Whether a model writes behind left-padded rows what it writes behind each row alone."""

    def logits(rows: list[list[int]]) -> torch.Tensor:
        options = {"min_new_tokens": 4, "max_new_tokens": 4, "do_sample": False, "pad_token_id": PAD}
        out = model.generate(**padded(rows), **options, output_logits=True, return_dict_in_generate=True)
        return torch.stack(out.logits, dim=1)

    alone = torch.cat([logits([row]) for row in BATCH])
    return torch.allclose(logits(BATCH), alone, atol=1e-3 * float(alone.abs().max()))


def everything(model: Any, bare: Behaviour) -> None:
    """All that the bare model gives is given, to the last bit."""
    now = behaviour(model)
    for name, given in bare.items():
        for one, other in zip(now[name], given, strict=True):
            if not (torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other):
                raise StepFailed(f"{name}: not what the bare model gives")


def _others(model: Any, bare: Behaviour) -> None:
    everything(model, {name: given for name, given in bare.items() if name != "the prompt"})


def _edit(wrapped: wise.WiseModel, bare: Behaviour) -> None:
    outcome = wrapped.edit([EDIT]).outcomes[0]
    if outcome.status != VERIFIED:
        raise StepFailed(f"{outcome.status}: {outcome.answer!r} in place of {EDIT.target!r}; {outcome}")


def _say(rows: list[list[int]], **options: Any) -> Callable[[wise.WiseModel, Behaviour], None]:
    def act(wrapped: wise.WiseModel, bare: Behaviour) -> None:
        said = generated(wrapped, rows, **options)[rows.index(PROMPT)]
        if said != [*TARGET, EOS]:
            raise StepFailed(f"{said} in place of {[*TARGET, EOS]}")

    return act


def _delete(wrapped: wise.WiseModel, bare: Behaviour) -> None:
    wrapped.delete([EDIT.id])
    everything(wrapped, bare)


def _unwrap(wrapped: wise.WiseModel, bare: Behaviour) -> None:
    everything(wrapped.unwrap(), bare)


say_padded = _say([*BATCH, PROMPT])

STEPS: dict[str, Callable[[wise.WiseModel, Behaviour], None]] = {
    "wrap and change nothing": everything,
    "edit": _edit,
    "say it alone": _say([PROMPT]),
    "say it without a cache": _say([PROMPT], use_cache=False),
    "say it left-padded in a batch": say_padded,
    "leave other prompts alone": _others,
    "delete": _delete,
    "unwrap": _unwrap,
}
"""What is done to the wrapped model, one after the other; each raises where something is not as it must be."""


TRAITS: dict[str, str] = {
    "experts": r"(\w+_)?num_(local_)?experts|n_routed_experts",
    "shared experts": r"n_shared_experts|(\w+_)?num_shared_experts|shared_(expert_)?intermediate_size|share_expert_dim",
    "latent attention": r"kv_lora_rank",
    "sparse attention": r"index(er)?_\w+",
    "linear attention": r"linear_(num_\w*heads|key_head_dim|head_dim)|lru_width|conv_L_cache",
    "state space": r"\w*mamba_\w+|ssm_\w+|state_size",
}
"""What a model is made of, and which field of its configuration says so, where it holds a number above zero."""


def traits_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The traits of a model, in the order of `TRAITS`; `images` where it also looks at them."""
    text_config = model.config.get_text_config()
    fields = {name: value for name, value in text_config.to_dict().items() if type(value) is int and value > 0}
    found = [trait for trait, field in TRAITS.items() if any(re.fullmatch(field, name) for name in fields)]
    return (*found, *(["images"] if text_config is not model.config else []))
