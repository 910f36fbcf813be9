"""Whether the base is still the one on which the live edits were verified.

An edit holds on the base that it was verified on. A peft adapter that is switched on or off, and weights that are
trained, make another base of the same module objects. Nothing fails then: the edit is just not said any more. The watch
compares what tells these bases apart and costs microseconds: which adapters are in effect, and how often torch has
changed each parameter in place. The layers of peft are recognized by their attributes, and peft is not imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import nn

REMEDY = (
    "put the adapters back as they were, or make the edits anew on the base as it is: "
    "edits = model.edits; model.reset(); model.edit(edits)"
)


def tuner_layers(model: nn.Module) -> Iterator[Any]:
    """The layers of a model on which peft has put adapters."""
    return (module for module in model.modules() if hasattr(module, "merged_adapters"))


def adapters_of(model: nn.Module) -> str:
    """The peft adapters that are in effect: their names in alphabetical order, joined by commas; empty without any."""
    return ",".join(sorted({name for layer in tuner_layers(model) for name in _in_effect(layer)}))


def _in_effect(layer: Any) -> tuple[str, ...]:
    """The adapters of one of peft's layers. What is merged stays in effect when adapters are disabled."""
    return (*layer.merged_adapters, *(() if layer.disable_adapters else layer.active_adapters))


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseState:
    adapters: str
    """See `adapters_of`."""
    switched: tuple[Any, ...]
    """What is seen of the adapters without looking at every layer."""
    layer: ref[Any] | None
    """One of peft's layers: peft switches an adapter in all of them."""
    versions: tuple[tuple[ref[nn.Parameter], int], ...]
    """How often torch had changed each parameter in place. A parameter that is no longer there is not compared:
    offloading makes new ones all the time."""


class BaseWatch:
    """Compares a base with the one on which its edits were verified; as a forward pre-hook, warns once if they differ.

    A copy knows of no edits.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._verified: BaseState | None = None
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._model,)

    def state(self) -> BaseState:
        layer = next(tuner_layers(self._model), None)
        return BaseState(
            adapters=adapters_of(self._model),
            switched=self._switched(layer),
            layer=None if layer is None else ref(layer),
            versions=tuple((ref(p), p._version) for p in self._model.parameters() if not p.is_inference()),
        )

    @property
    def verified(self) -> BaseState | None:
        """The base on which the edits that are served were verified; None if there are none."""
        return self._verified

    @verified.setter
    def verified(self, state: BaseState | None) -> None:
        if state is not self._verified:
            self._verified, self._warned = state, set()

    def __call__(self, module: Any, args: tuple[Any, ...]) -> None:
        """The pre-hook of the layer with the memory. Steps of one token are not looked at."""
        if torch.compiler.is_compiling() or module.memory is None or not args or args[0].shape[-2] == 1:
            return
        reason = self.difference(self._verified)
        if reason is not None and reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"{reason}: the model may not say the edits any more; {REMEDY}", UserWarning, stacklevel=2)

    def difference(self, before: BaseState | None) -> str | None:
        """How the base differs from what it was; None if it does not, or there is nothing to compare it with."""
        if before is None:
            return None
        if self._switched(before.layer and before.layer()) != before.switched:
            now = adapters_of(self._model)
            if now != before.adapters:
                return (
                    f"the live edits were verified with {before.adapters or 'no adapter'} in effect, and now "
                    f"{now or 'no adapter'} is"
                )
        if any((p := held()) is not None and p._version != version for held, version in before.versions):
            return "the weights of the base were changed, as training does, after the live edits were verified"
        return None

    def _switched(self, layer: Any) -> tuple[Any, ...]:
        given = id(vars(self._model).get("peft_config"))
        return (given,) if layer is None else (given, *_in_effect(layer))
