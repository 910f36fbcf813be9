"""The interface of an editor, and its two kinds: editors that change parameters, and editors that replace a layer.

Whatever an editor does, the base comes back bit for bit: `disabled` for the length of a `with` block, `unwrap` for
good. An editor is asked, and measured, exactly as a wrapped model is. Unlike the side memory it does not take back an
edit that did not take: what it did is what is measured.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wise.edits import Edit, check_unique
from wise.errors import EditError, UnsupportedModelError
from wise.lab.editors.context import EditingContext
from wise.lab.editors.settings import LayerSettings, Settings
from wise.memory.modules import Wrapper, evaluating, execution_device, hooked
from wise.training.generation import greedy
from wise.training.report import FAILED, SUPERSEDED, VERIFIED, EditReport, Outcome
from wise.training.verification import SPARE_TOKENS

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What an editor did for one edit."""

    steps: int = 0
    """Optimisation steps; 0 of a closed form."""
    loss: float | None = None
    """Mean negative log-likelihood of the target in nats at the end, where the editor knows it."""


class Baseline(ABC, Generic[S]):
    """One editor on one base. Not to be used side by side with another one on the same model."""

    Config: ClassVar[type[Settings]]
    needs_subject: ClassVar[bool] = False
    """Whether an edit must name its subject."""

    def __init__(self, context: EditingContext, settings: S) -> None:
        """Changes nothing. Raises ConfigError or UnsupportedModelError where the settings do not fit the base."""
        self.context, self.settings = context, settings
        self.model, self.encoder = context.model, context.encoder
        self.edits: tuple[Edit, ...] = ()
        """All that were applied, in their order; of one prompt, the last."""
        self._prepared = False

    # -- what an editor is --------------------------------------------------------------------

    def _prepare(self) -> None:
        """Computes what is needed once per base: statistics, a hypernetwork. Kept with `EditingContext.cached`."""

    @abstractmethod
    def _apply(self, edits: Sequence[Edit], progress: Callable[[int], None]) -> list[Applied]:
        """Applies edits behind those applied before, as one call; `progress` takes how many are through."""

    @abstractmethod
    def disabled(self) -> AbstractContextManager[PreTrainedModel]:
        """The base speaks, bit for bit, for the length of a `with` block."""

    @abstractmethod
    def unwrap(self) -> PreTrainedModel:
        """Puts the base back as it was, bit for bit, and returns it. The editor is then of no more use."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Bytes that must be kept beside the base for the edits so far."""

    @property
    @abstractmethod
    def state(self) -> Any:
        """All that the edits so far changed, as `restore` takes it; what comes later changes nothing of it in place."""

    @abstractmethod
    def restore(self, state: Any) -> None:
        """Puts an earlier `state` of this editor in place."""

    # -- what all editors do alike ------------------------------------------------------------

    def prepare(self) -> None:
        """Does what is needed once per base, which costs no edit anything. Done at the first edit at the latest."""
        if not self._prepared:
            with self.evaluating(), self.disabled():
                self._prepare()
            self._prepared = True

    def edit(self, edits: Edit | Sequence[Edit], *, progress: Callable[[int], None] | None = None) -> EditReport:
        """Applies edits in one call, and asks for each of them, which is not in the time that the report gives. Raises
        EditError for an edit that cannot be applied, and whatever the method raises, with the edits so far in place as
        they were."""
        edits = [edits] if isinstance(edits, Edit) else list(edits)
        if not edits:
            raise EditError("edit() was given no edits: expected one wise.Edit or a list of them")
        self.validate(edits)
        self.prepare()
        latest = {edit.prompt: edit for edit in edits}
        fresh = [edit for edit in edits if latest[edit.prompt] is edit]
        by_prompt = {edit.prompt: edit.id for edit in self.edits}
        before = self.edits, self.state
        start, start_cpu = time.perf_counter(), time.process_time()
        try:
            with self.evaluating(), torch.enable_grad():
                applied = self._apply(fresh, progress or (lambda count: None))
        except BaseException:
            self.edits = before[0]
            self.restore(before[1])
            raise
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        self.edits = (*(edit for edit in self.edits if edit.prompt not in latest), *fresh)
        answers = dict(zip((edit.id for edit in fresh), self._answers(fresh), strict=True))
        by_id = dict(zip((edit.id for edit in fresh), applied, strict=True))
        return EditReport(
            outcomes=tuple(
                self._outcome(edit, by_id.get(edit.id), answers.get(edit.id, ""), seconds / len(fresh))
                for edit in edits
            ),
            replaced=tuple(by_prompt[edit.prompt] for edit in fresh if edit.prompt in by_prompt),
            dropped=(),
            seconds=seconds,
            cpu_seconds=cpu_seconds,
        )

    def validate(self, edits: Sequence[Edit]) -> None:
        check_unique(edits)
        live = {edit.id for edit in self.edits}
        for edit in edits:
            if edit.id in live:
                raise EditError(
                    f"field 'id': edit {edit.id!r} was applied already; leave the edit out, or give it another id"
                )
            if self.needs_subject and edit.subject is None:
                raise EditError(
                    f"field 'subject': edit {edit.id!r} names none, and {type(self).__name__} writes at the subject's "
                    "last token; name the subject as the prompt writes it, or choose another editor"
                )
            self.encoder.validate(edit)

    def evaluating(self) -> AbstractContextManager[None]:
        """Dropout off, and back as it was afterwards."""
        return evaluating(self.model)

    def _answers(self, edits: Sequence[Edit]) -> list[str]:
        if not edits:
            return []
        prompts = [self.encoder.prompt(edit.prompt) for edit in edits]
        if isinstance(self, WholePrompts):
            prompts = self.with_context(prompts)
        limits = [len(self.encoder.target(e.prompt, e.target)) + SPARE_TOKENS for e in edits]
        with self.evaluating():
            out = greedy(self.model, prompts, stops=self.encoder.stops, max_new_tokens=limits)
        return [self.encoder.answer(ids) for ids in out]

    def _outcome(self, edit: Edit, applied: Applied | None, answer: str, seconds: float) -> Outcome:
        if applied is None:
            return Outcome(id=edit.id, status=SUPERSEDED, answer=answer, steps=0, loss=None, milliseconds=0.0)
        right = self.encoder.answer(self.encoder.target(edit.prompt, edit.target))
        return Outcome(
            id=edit.id,
            status=VERIFIED if answer == right else FAILED,
            answer=answer,
            steps=applied.steps,
            loss=applied.loss,
            milliseconds=1000 * seconds,
        )


class WholePrompts:
    """Mixed into an editor that looks at whole prompts and not at single tokens. Whoever asks it says which they are.

    What is set holds for one forward or one `generate`.
    """

    def with_context(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The ids that stand for these prompts: what the model is to read in their place."""
        return [list(prompt) for prompt in prompts]

    def reading(self, lengths: Sequence[int]) -> AbstractContextManager[None]:
        """For the length of a `with` block rows are right-padded, and begin with prompts of so many tokens; otherwise
        all the tokens of a row's first forward are its prompt."""
        return nullcontext()


class WeightEditor(Baseline[S]):
    """An editor that changes parameters of the base.

    The base's own tensors are put aside untouched and never written to, so they come back as they were.
    """

    def __init__(self, context: EditingContext, settings: S, names: Sequence[str]) -> None:
        """names: of the parameters that may change, as `model.named_parameters` has them."""
        super().__init__(context, settings)
        self.parameters: dict[str, nn.Parameter] = {name: context.model.get_parameter(name) for name in names}
        away = next((name for name, p in self.parameters.items() if p.device.type == "meta"), None)
        if away is not None:
            raise UnsupportedModelError(
                f"{away} is offloaded, and {type(self).__name__} must change it in place; load the model without "
                "offloading"
            )
        self.original: dict[str, Tensor] = {name: p.data for name, p in self.parameters.items()}
        """The base's own tensors."""
        self.weights: dict[str, Tensor] = dict(self.original)
        """What is in their place now."""

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Serves these in place of the parameters they are named after, in the base's own precision."""
        for name, weight in weights.items():
            parameter = self.parameters[name]
            if weight is not self.original[name]:
                weight = weight.detach().to(parameter.device, parameter.dtype)
            self.weights[name] = parameter.data = weight

    @contextmanager
    def disabled(self) -> Iterator[PreTrainedModel]:
        before = {name: parameter.data for name, parameter in self.parameters.items()}
        self.unwrap()
        try:
            yield self.model
        finally:
            for name, weight in before.items():
                self.parameters[name].data = weight

    def unwrap(self) -> PreTrainedModel:
        for name, parameter in self.parameters.items():
            parameter.data = self.original[name]
        return self.model

    @property
    def memory_bytes(self) -> int:
        """The changed parameters, whole."""
        return sum(w.nbytes for name, w in self.weights.items() if w is not self.original[name])

    @property
    def state(self) -> Any:
        return dict(self.weights)

    def restore(self, state: Any) -> None:
        self.put(state)


class Replacement(Wrapper, ABC):
    """Stands in the place of a value projection, `base_module`, a linear map `[..., f] -> [..., d]`; inactive or empty
    it is that, bit for bit. What a method learns is kept in plain attributes: parameters are those of the base."""

    def __init__(self, context: EditingContext, settings: LayerSettings) -> None:
        super().__init__()
        place = context.chosen(settings)
        self.path, self.in_features, self.out_features = place.path, place.in_features, place.out_features
        self.base_module = context.model.get_submodule(place.path)
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
        output: Tensor = self.base_module(activation)
        return output if self.empty or not self.active else self.changed(activation, output)

    @torch.no_grad()
    def layer_io(self, model: PreTrainedModel, prompt: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What goes into the base's layer at each token of a prompt, `[tokens, f]`, and what comes out, `[tokens, d]`;
        alike with edits and without."""
        results: list[Tensor] = []
        ids = torch.tensor([list(prompt)], device=execution_device(model))
        with hooked([(self.base_module, lambda _, args, output: results.extend((args[0], output)))]):
            model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
        activation, output = (tensor.reshape(len(prompt), -1) for tensor in results)
        return activation, output


class LayerEditor(Baseline[S]):
    """An editor that puts a layer of its own in the place of one of the base's, and writes edits to it one by one."""

    def __init__(self, context: EditingContext, settings: S, layer: Replacement) -> None:
        super().__init__(context, settings)
        self.layer: Any = layer
        self._put(layer)

    def _put(self, layer: nn.Module) -> None:
        parent, _, name = self.layer.path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, layer)

    @abstractmethod
    def _write(self, edit: Edit) -> Applied:
        """Applies one edit behind those before."""

    def _apply(self, edits: Sequence[Edit], progress: Callable[[int], None]) -> list[Applied]:
        applied = []
        for edit in edits:
            applied.append(self._write(edit))
            progress(len(applied))
        return applied

    @contextmanager
    def disabled(self) -> Iterator[PreTrainedModel]:
        before = self.layer.active
        self.layer.active = False
        try:
            yield self.model
        finally:
            self.layer.active = before

    def unwrap(self) -> PreTrainedModel:
        self._put(self.layer.base_module)
        return self.model
