"""`wise.wrap`: a Hugging Face causal LM with a side memory that can be edited while it lives.

The wrapped model is the user's own, with one module replaced; `unwrap` puts the very same module back. Whatever
transformers can do with the model it can do with the wrapped one, because the side memory sees nothing but the
activations of the layer it stands beside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import PushToHubMixin

from wise.answer import Answer, make_answer
from wise.architectures import ValueProjection, locate, locate_attention
from wise.config import WiseConfig
from wise.edits import Edit
from wise.errors import ArtifactError, ConfigError, EditError, UnsupportedModelError, did_you_mean
from wise.memory.artifact import load_memory, save_memory
from wise.memory.context import ContextReader
from wise.memory.fingerprint import Fingerprint, fingerprint
from wise.memory.layer import SideMemoryLayer, execution_device
from wise.memory.merging import MERGES
from wise.memory.side_memory import Route
from wise.memory.state import MemoryState
from wise.router.assemble import assemble
from wise.training.background import Background, measure
from wise.training.baselines.ground import Ground
from wise.training.encoding import Encoder, learn_encoder
from wise.training.generation import evaluating, greedy
from wise.training.lesson import Lesson
from wise.training.report import EditReport
from wise.training.router_file import load_router
from wise.training.router_training import LearnedSpaces, learn_spaces
from wise.training.splice import SplicedModel
from wise.training.trainer import Trainer
from wise.training.writers.base import Writer
from wise.training.writers.closed_form import ClosedForm
from wise.training.writers.masked_dense import MaskedDenseWriter
from wise.training.writers.value import ValueWriter

logger = logging.getLogger(__name__)

ANSWER_TOKENS = 32


class WiseModel(nn.Module, PushToHubMixin):
    """A causal LM with a side memory. Everything not defined here is the wrapped model's own."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: WiseConfig | None = None,
        *,
        router: str | PathLike[str] | None = None,
    ) -> None:
        """See `wise.wrap`."""
        super().__init__()
        config = config or WiseConfig()
        if router is not None and config.mode != "hybrid":
            raise ConfigError(f"router={str(router)!r}: mode={config.mode!r} has no trained router; use mode='hybrid'")
        if config.merge not in MERGES:
            raise ConfigError(f"merge={config.merge!r} is not known: {did_you_mean(config.merge, MERGES)}")
        if any(isinstance(module, SideMemoryLayer) for module in model.modules()):
            raise UnsupportedModelError("this model is wrapped already: call unwrap() on it first")
        self.projection: ValueProjection = locate(model, config)
        self._learned = None if router is None else load_router(router, fingerprint(model, self.projection))
        self.model = model
        self.tokenizer = tokenizer
        self.wise_config = config
        self.state = MemoryState()
        self._encoder: Encoder | None = None
        self._trainer: Trainer | None = None
        parent, name = self._place()
        self.layer = SideMemoryLayer(getattr(parent, name))
        self.reader: ContextReader | None = None
        if config.mode == "hybrid":
            self.reader = ContextReader(locate_attention(model, self.projection, config.subject_fraction))
        setattr(parent, name, self.layer)  # last: whatever is refused leaves the model as it was

    def _place(self) -> tuple[nn.Module, str]:
        path, _, name = self.projection.path.rpartition(".")
        return self.model.get_submodule(path), name

    def unwrap(self) -> PreTrainedModel:
        """Puts the base's own layer back and returns the model that was wrapped."""
        if self.is_wrapped:
            parent, name = self._place()
            setattr(parent, name, self.layer.base_layer)
            if self.reader is not None:
                self.reader.remove()
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
                background = self._with_spaces(self._measured(spliced))
                writer = self._writer(spliced, background)
            self._trainer = Trainer(
                spliced=spliced,
                encoder=self.encoder,
                background=background,
                writer=writer,
                config=self.wise_config,
                dtype=self.model.dtype,
            )
        return self._trainer

    def _measured(self, spliced: SplicedModel) -> Background:
        return measure(self.model, spliced, self.encoder, self.wise_config, self.reader)

    def _with_spaces(self, background: Background) -> Background:
        """With the spaces that keys are compared in already, or else those of a trained router."""
        state, learned = self.state, self._learned
        if state.subject_space is not None and state.key_space is not None:
            return replace(background, key_space=state.key_space, subject_space=state.subject_space)
        if learned is not None:
            return replace(background, key_space=learned.relation, subject_space=learned.subject)
        if self.reader is not None:
            logger.warning(
                "the router is untrained: it compares what the base's own text makes of questions and subjects, and "
                "reaches fewer wordings; `wise train-router` trains one"
            )
        return background

    def learn_router(
        self,
        lessons: Sequence[Lesson],
        *,
        false_routes: float = 0.05,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> LearnedSpaces:
        """Trains a router on this base, and uses it from then on.

        Raises ConfigError in another mode than `hybrid`, where edits are live, whose keys are of the router before,
        or as `learn_spaces` does.
        """
        if self.reader is None or self.state.edits:
            raise ConfigError("a router is trained in mode='hybrid' and before the first edit; reset() forgets edits")
        with self.evaluating(), self.disabled():
            spliced = SplicedModel(self.model, self.projection)
            self._learned = learn_spaces(
                spliced,
                self.reader,
                self.encoder,
                self._measured(spliced),
                lessons,
                false_routes=false_routes,
                seed=self.wise_config.seed,
                progress=progress,
            )
        self._trainer = None
        return self._learned

    def fingerprint(self) -> Fingerprint:
        """Which base this is, and beside which layer the memory stands."""
        return fingerprint(self.model, self.projection)

    def _writer(self, spliced: SplicedModel, background: Background) -> Writer:
        """The base must be in place."""
        config = self.wise_config
        if self.reader is None:
            return MaskedDenseWriter(spliced, self.encoder, background, config, self.model.dtype)
        closed_form = None
        if config.writer != "gradient":
            ground = Ground(model=self.model, encoder=self.encoder, value_projection=config.value_projection)
            closed_form = ClosedForm.of(ground, self.projection.layer, seed=config.seed)
        return ValueWriter(spliced, self.encoder, background, config, self.reader, closed_form)

    # -- asking -------------------------------------------------------------------------------

    def ask(self, prompts: str | Sequence[str], *, max_new_tokens: int = ANSWER_TOKENS) -> list[Answer]:
        """Greedy answers to the model's own stop, with the route of every token."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = [self.encoder.prompt(text) for text in texts]
        with self.evaluating():
            out = greedy(self.model, ids, stops=self.encoder.stops, max_new_tokens=max_new_tokens)
            routes = [self.route(torch.tensor([[*prompt, *new]])) for prompt, new in zip(ids, out, strict=True)]
        told = zip(texts, ids, out, routes, strict=True)
        return [make_answer(self.encoder, text, prompt, new, route) for text, prompt, new, route in told]

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
        device = self.layer.device()
        return assemble(state, self.wise_config, reader=self.reader, device=device, dtype=self.model.dtype)

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
            base=self.fingerprint(),
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
            base.check(wrapped.fingerprint())
            wrapped._serve(state)
        except BaseException:
            wrapped.unwrap()
            raise
        return wrapped


def wrap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: WiseConfig | None = None,
    *,
    router: str | PathLike[str] | None = None,
) -> WiseModel:
    """Wraps a causal LM for lifelong editing; the model given is the one that is wrapped, not a copy.

    With accelerate's offloading, dispatch the model first and wrap it then.

    router: file that `wise train-router` wrote for this base (`hybrid`). A saved memory brings its own.

    Raises ArtifactError for a router of another base, ConfigError for a layer the model does not have, and
    UnsupportedModelError for an architecture that is not known or keeps its experts packed.
    """
    return WiseModel(model, tokenizer, config, router=router)
