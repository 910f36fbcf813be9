"""A layer that replaces a value projection: it contains the base's own layer and what a method adds to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wise.architectures import TargetModule
from wise.lab.editors.context import EditingContext
from wise.memory.modules import Wrapper, execution_device, hooked


class Replacement(Wrapper, ABC):
    """Wraps `base_module`, a linear map `[..., f] -> [..., d]`; inactive or empty it is that, bit for bit.

    What a method learns is kept in plain attributes: parameters of the model are those of the base.
    """

    def __init__(self, context: EditingContext, place: TargetModule) -> None:
        super().__init__()
        self.base_module = context.model.get_submodule(place.path)
        self.in_features = place.in_features
        self.out_features = place.out_features
        self.active = True
        self.train(self.base_module.training)

    @property
    @abstractmethod
    def empty(self) -> bool:
        """Whether it holds no edit."""

    @abstractmethod
    def changed(self, activation: Tensor, output: Tensor) -> Tensor:
        """What stands in the place of the base's `output` `[..., d]` for `activation` `[..., f]`."""

    def forward(self, activation: Tensor) -> Tensor:
        """`[..., f] -> [..., d]`."""
        output: Tensor = self.base_module(activation)
        return output if self.empty or not self.active else self.changed(activation, output)

    @torch.no_grad()
    def seen(self, model: PreTrainedModel, prompt: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What goes into the base's layer at each token of a prompt, `[tokens, f]`, and what comes out, `[tokens, d]`;
        alike with edits and without."""
        results: list[Tensor] = []
        ids = torch.tensor([list(prompt)], device=execution_device(model))
        with hooked([(self.base_module, lambda _, args, output: results.extend((args[0], output)))]):
            model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
        activation, output = (tensor.reshape(len(prompt), -1) for tensor in results)
        return activation, output
