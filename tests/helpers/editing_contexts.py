"""Grounds for editors to be tested on: a tiny random model of any architecture, and the shipped one, with facts."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tiny import BOS, EOS, text, tiny_model, tiny_tokenizer
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoTokenizer

from wise.architectures import TargetModule
from wise.config import WiseConfig
from wise.demo import model_path
from wise.demo.records import demo_records
from wise.edits import Edit, Record
from wise.lab.editors.base import WeightEditor
from wise.lab.editors.context import EditingContext, TokenRow, mean_loss, padded_rows
from wise.training.encoding import Encoder, learn_encoder

CONTEXT = 128


def tiny_context(model_type: str = "llama", *, dtype: Any = None, **given: Any) -> EditingContext:
    """A fresh random model."""
    model = tiny_model(model_type)
    encoder = Encoder(
        tokenizer=tiny_tokenizer(), bos=(BOS,), terminator=(EOS,), stops=frozenset([EOS]), context=CONTEXT
    )
    return EditingContext(model=model if dtype is None else model.to(dtype), encoder=encoder, **given)


def tiny_edits(count: int, *, first: int = 0) -> list[Edit]:
    """Edits whose subject is two words in the middle of the prompt, no two of them alike."""
    found = []
    for i in range(first, first + count):
        subject = text([10 + i, 40 + i])
        found.append(Edit(prompt=f"w5 {subject} w7 w8", subject=subject, target=text([30 + i]), id=f"e{i}"))
    return found


def tiny_records(count: int) -> tuple[Record, ...]:
    """Records of `tiny_edits`, each with another wording and a neighbour."""
    return tuple(
        Record(edit=edit, paraphrases=(f"w6 {edit.subject} w9",), neighbours=(f"w5 w{60 + i} w7 w8",))
        for i, edit in enumerate(tiny_edits(count))
    )


def way_round(projection: TargetModule, weight: Tensor) -> Tensor:
    """A weight of a value projection as `[d, f]`, float64."""
    return (weight if weight.shape == (projection.out_features, projection.in_features) else weight.T).double()


def by_autograd(editor: WeightEditor[Any], rows: list[TokenRow]) -> dict[str, Tensor]:
    """Gradients of the summed losses with respect to the edited weights, as they lie."""
    leaves = {name: w.detach().clone().requires_grad_() for name, w in editor.weights.items()}
    ids, mask, labels = padded_rows(rows, editor.context.device)
    given = {"attention_mask": mask, "use_cache": False}
    loss = mean_loss(functional_call(editor.model, leaves, (ids,), given).logits, labels).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@cache
def _shipped() -> tuple[Any, Encoder]:
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    return model, learn_encoder(model, AutoTokenizer.from_pretrained(model_path()), WiseConfig())


def demo_context(**given: Any) -> EditingContext:
    """The shipped model, the same one in every test of a process: whoever edits it unwraps it."""
    model, encoder = _shipped()
    return EditingContext(model=model, encoder=encoder, **given)


def records(count: int, *, skip: int = 0) -> list[Record]:
    """Counterfactual edits of what the shipped model knows, with what measures them."""
    return demo_records(skip + count, seed=0)[skip:]
