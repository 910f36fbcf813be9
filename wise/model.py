"""`wise.wrap`: a Hugging Face causal LM with a side memory that can be edited while it lives.

The wrapped model is the user's own, with one module replaced; `unwrap` puts the very same module back. Whatever
transformers can do with the model it can do with the wrapped one, because the side memory sees nothing but the
activations of the layer it stands beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import PushToHubMixin

from wise.architectures import ValueProjection, locate
from wise.config import WiseConfig
from wise.edits import Edit
from wise.errors import ArtifactError, ConfigError, EditError, UnsupportedModelError, did_you_mean
from wise.memory.artifact import load_memory, save_memory
from wise.memory.fingerprint import fingerprint
from wise.memory.layer import SideMemoryLayer, execution_device
from wise.memory.merging import MERGES
from wise.memory.side_memory import Route
from wise.memory.state import MemoryState
from wise.router.assemble import assemble
from wise.training.background import measure
from wise.training.encoding import Encoder, learn_encoder
from wise.training.generation import evaluating, greedy
from wise.training.report import EditReport
from wise.training.splice import SplicedModel
from wise.training.trainer import Trainer
from wise.training.writers.masked_dense import MaskedDenseWriter

ANSWER_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A greedy answer, with the route of every token that led to it."""

    prompt: str
    text: str
    tokens: tuple[str, ...]
    """Prompt and answer, token by token."""
    prompt_tokens: int
    """How many of them are the prompt."""
    slots: tuple[int | None, ...]
    """Per token: the slot that spoke when it was read, or None for the base."""
    scores: tuple[float, ...]
    thresholds: tuple[float, ...]


class WiseModel(nn.Module, PushToHubMixin):
    """A causal LM with a side memory. Everything not defined here is the wrapped model's own."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: WiseConfig | None = None
    ) -> None:
        """See `wise.wrap`."""
        super().__init__()
        config = config or WiseConfig()
        if config.merge not in MERGES:
            raise ConfigError(f"merge={config.merge!r} is not known: {did_you_mean(config.merge, MERGES)}")
        if any(isinstance(module, SideMemoryLayer) for module in model.modules()):
            raise UnsupportedModelError("this model is wrapped already: call unwrap() on it first")
        self.projection: ValueProjection = locate(model, config)
        self.model = model
        self.tokenizer = tokenizer
        self.wise_config = config
        self.state = MemoryState()
        self._encoder: Encoder | None = None
        self._trainer: Trainer | None = None
        parent, name = self._place()
        self.layer = SideMemoryLayer(getattr(parent, name))
        setattr(parent, name, self.layer)

    def _place(self) -> tuple[nn.Module, str]:
        path, _, name = self.projection.path.rpartition(".")
        return self.model.get_submodule(path), name

    def unwrap(self) -> PreTrainedModel:
        """Puts the base's own layer back and returns the model that was wrapped."""
        if self.is_wrapped:
            parent, name = self._place()
            setattr(parent, name, self.layer.base_layer)
        return self.model

    @property
    def is_wrapped(self) -> bool:
        """False once `unwrap` has put the base's own layer back."""
        parent, name = self._place()
        return getattr(parent, name) is self.layer

    # -- what transformers sees ---------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate`, every option of it."""
        return self.model.generate(*args, **kwargs)  # type: ignore[operator]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # not set yet: there is nothing to forward to
                raise
            return getattr(self.model, name)

    # -- editing ------------------------------------------------------------------------------

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The live edits, in the order in which they came."""
        return self.state.edits

    def edit(
        self, edits: Edit | Sequence[Edit], *, progress: Callable[[int], None] | None = None
    ) -> EditReport:
        """Writes edits into the side memory, and keeps those that the model then generates by itself.

        A later edit of the same prompt takes the place of an earlier one. `progress` is called with the number
        of edits that are through.

        Raises EditError, with nothing changed, where an edit is not usable (`wise.Edit`), ids repeat, an edit
        does not fit the model's context, or the model was unwrapped.
        """
        if not self.is_wrapped:
            raise EditError("this model was unwrapped, so nothing would be served: wrap it again, then edit it")
        edits = list(edits) if isinstance(edits, Iterable) else [edits]
        for edit in edits:
            if not isinstance(edit, Edit):
                raise EditError(f"edit() takes wise.Edit records, not {type(edit).__name__}: {edit!r:.80}")
        if not edits:
            raise EditError("edit() was given no edits: expected one wise.Edit or a list of them")
        with self.evaluating():
            state, report = self.trainer.edit(self.state, edits, serve=self.serving, progress=progress)
        self._serve(state)
        return report

    def prepare(self) -> None:
        """Measures the base, which takes seconds and which the first edit would do otherwise."""
        _ = self.trainer

    def validate(self, edits: Sequence[Edit]) -> None:
        """Raises EditError for edits that `edit` would refuse, and changes nothing."""
        self.trainer.validate(self.state, edits)

    @property
    def memory_bytes(self) -> int:
        """Bytes of slots and keys, as `save_pretrained` writes them."""
        slots = (tensor for slot in self.state.slots for tensor in slot.tensors().values())
        return sum(tensor.nbytes for tensors in (slots, self.state.keys.values()) for tensor in tensors)

    def reset(self) -> None:
        """Forgets every edit: the wrapped model is the base again."""
        self._serve(MemoryState())

    @property
    def encoder(self) -> Encoder:
        """How prompts and targets become ids for this base; learned from it at first use."""
        if self._encoder is None:
            with self.evaluating(), self.disabled():
                self._encoder = learn_encoder(self.model, self.tokenizer, self.wise_config)
        return self._encoder

    @property
    def trainer(self) -> Trainer:
        """Made at the first edit, since it measures the base, and again when the model has moved."""
        device = execution_device(self.model)
        if self._trainer is None or (self._trainer.spliced.device, self._trainer.dtype) != (device, self.model.dtype):
            with self.evaluating(), self.disabled():
                spliced = SplicedModel(self.model, self.projection)
                background = measure(self.model, spliced, self.encoder, self.wise_config)
            self._trainer = Trainer(
                spliced=spliced,
                encoder=self.encoder,
                background=background,
                writer=MaskedDenseWriter(spliced, self.encoder, background, self.wise_config),
                config=self.wise_config,
                dtype=self.model.dtype,
            )
        return self._trainer

    # -- asking -------------------------------------------------------------------------------

    def ask(self, prompts: str | Sequence[str], *, max_new_tokens: int = ANSWER_TOKENS) -> list[Answer]:
        """Greedy answers to the model's own stop, with the route of every token."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = [self.encoder.prompt(text) for text in texts]
        with self.evaluating():
            out = greedy(self.model, ids, stops=self.encoder.stops, max_new_tokens=max_new_tokens)
            return [
                self._answer(text, prompt, new) for text, prompt, new in zip(texts, ids, out, strict=True)
            ]

    def _answer(self, text: str, prompt: list[int], new: list[int]) -> Answer:
        route = self.route(torch.tensor([[*prompt, *new]]))
        spoke = route.open.tolist() if route is not None else [False] * (len(prompt) + len(new))
        slots = route.slot.tolist() if route is not None else spoke
        return Answer(
            prompt=text,
            text=self.encoder.answer(new),
            tokens=tuple(str(self.tokenizer.decode([i])) for i in [*prompt, *new]),
            prompt_tokens=len(prompt),
            slots=tuple(slot if opened else None for slot, opened in zip(slots, spoke, strict=True)),
            scores=tuple(route.score.tolist()) if route is not None else (0.0,) * len(spoke),
            thresholds=tuple(route.threshold.tolist()) if route is not None else (float("inf"),) * len(spoke),
        )

    @torch.no_grad()
    def route(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Route | None:
        """The route of every token of `[batch, seq]` ids, rows flattened; None while nothing is edited.

        A route depends on the token's activation alone, so it is the one taken in generation too.
        """
        memory = self.layer.memory
        if memory is None:
            return None
        seen: list[Tensor] = []
        handle = self.layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        try:
            device = execution_device(self.model)
            mask = attention_mask.to(device) if attention_mask is not None else None
            self.model(input_ids.to(device), attention_mask=mask, use_cache=False)
        finally:
            handle.remove()
        route: Route = memory.route(seen[0])
        return route

    @contextmanager
    def disabled(self) -> Iterator[PreTrainedModel]:
        """The base speaks alone for the length of a `with` block."""
        with self.serving(MemoryState()) as model:
            yield model

    @contextmanager
    def serving(self, state: MemoryState) -> Iterator[PreTrainedModel]:
        """`state` is in place for the length of a `with` block; yields the model to ask."""
        before = self.layer.memory
        self.layer.memory = self._assembled(state)
        try:
            yield self.model
        finally:
            self.layer.memory = before

    def _serve(self, state: MemoryState) -> None:
        memory = self._assembled(state)
        self.state, self.layer.memory = state, memory

    def _assembled(self, state: MemoryState) -> Any:
        return assemble(state, self.wise_config, device=self.layer.device(), dtype=self.model.dtype)

    def evaluating(self) -> AbstractContextManager[None]:
        """Dropout off, and back as it was afterwards."""
        return evaluating(self.model)

    # -- saving -------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the settings and the memory, never the base, to a folder; whole or not at all.

        With `push_to_hub` the memory goes to the hub as well, to `repo_id` or else a repository of the
        folder's name; `kwargs` are those of `push_to_hub`, which is transformers' own.

        Raises ArtifactError, with nothing written, where the folder holds anything but a memory.
        """
        save_memory(
            save_directory,
            config=self.wise_config,
            state=self.state,
            base=fingerprint(self.model, self.projection),
        )
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).resolve().name, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        path: str | PathLike[str],
        **kwargs: Any,
    ) -> WiseModel:
        """Wraps `model` with the memory saved at `path`, a folder or a hub id; `kwargs` as for `load_memory`.

        Raises ArtifactError, with `model` as it was, where the memory is incomplete, damaged, or was made for
        another base.
        """
        config, state, base = load_memory(path, **kwargs)
        try:
            wrapped = cls(model, tokenizer, config)
        except (ConfigError, UnsupportedModelError) as error:
            raise ArtifactError(
                f"the memory at {path} stands beside {base.path} of a {base.model_type} base and does not "
                f"fit this model: {error}"
            ) from error
        try:
            base.check(fingerprint(model, wrapped.projection))
            wrapped._serve(state)
        except BaseException:
            wrapped.unwrap()
            raise
        return wrapped


def wrap(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: WiseConfig | None = None
) -> WiseModel:
    """Wraps a causal LM for lifelong editing; the model given is the one that is wrapped, not a copy.

    With accelerate's offloading, dispatch the model first and wrap it then.

    Raises ConfigError for a layer the model does not have, and UnsupportedModelError for an architecture that
    is not known or keeps its experts packed.
    """
    return WiseModel(model, tokenizer, config)
