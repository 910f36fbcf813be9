"""The interface of an editor, and its two kinds: editors that change parameters, and editors that replace a layer.

Whatever an editor does, the base comes back bit for bit: `disabled` for the length of a `with` block, `unwrap` for
good. An editor is asked, and measured, exactly as a wrapped model is. Unlike the side memory it does not take back an
edit that did not take: what it did is what is measured.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.edits import Edit, check_lengths, check_unique
from wise.errors import ArtifactError, EditError, UnsupportedModelError
from wise.lab.editors.context import EditingContext, read_tensors, write_tensors
from wise.lab.editors.settings import Settings
from wise.memory.modules import evaluating
from wise.training.encoding import Encoder
from wise.training.generation import greedy
from wise.training.report import FAILED, SUPERSEDED, VERIFIED, EditReport, Outcome
from wise.training.verification import SPARE_TOKENS

FILE = "editor.safetensors"
EDITS = "edits.json"

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
        self.context = context
        self.settings = settings
        self.edits: tuple[Edit, ...] = ()
        """All that were applied, in their order; of one prompt, the last."""
        self._prepared = False
        self._base = context.base.digest  # before anything is edited

    @property
    def model(self) -> PreTrainedModel:
        return self.context.model

    @property
    def encoder(self) -> Encoder:
        return self.context.encoder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.context.encoder.tokenizer

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

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that `load_tensors` needs to have the edits so far in place again; not to be changed in place."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`; `self.edits` is set already."""

    # -- what all editors do alike ------------------------------------------------------------

    def prepare(self) -> None:
        """Does what is needed once per base, which costs no edit anything. Done at the first edit at the latest."""
        if not self._prepared:
            with self.evaluating(), self.disabled():
                self._prepare()
            self._prepared = True

    def edit(
        self, edits: Edit | Sequence[Edit], *, progress: Callable[[int], None] | None = None
    ) -> EditReport:
        """Applies edits in one call, and asks for each of them; asking is not in the time that the report gives.

        Raises EditError, with nothing changed, for an edit that cannot be applied; and whatever the method itself
        raises, with the edits so far in place as they were.
        """
        edits = [edits] if isinstance(edits, Edit) else list(edits)
        if not edits:
            raise EditError("edit() was given no edits: expected one wise.Edit or a list of them")
        self.validate(edits)
        self.prepare()
        latest = {edit.prompt: edit for edit in edits}
        fresh = [edit for edit in edits if latest[edit.prompt] is edit]
        held = {edit.prompt: edit.id for edit in self.edits}
        before = self.edits, self.tensors()
        begun, cpu = time.perf_counter(), time.process_time()
        try:
            with self.evaluating(), torch.enable_grad():
                applied = self._apply(fresh, progress or (lambda count: None))
        except BaseException:
            self.edits = before[0]
            self.load_tensors(before[1])
            raise
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
        self.edits = (*(edit for edit in self.edits if edit.prompt not in latest), *fresh)
        answers = dict(zip((edit.id for edit in fresh), self._answers(fresh), strict=True))
        found = dict(zip((edit.id for edit in fresh), applied, strict=True))
        return EditReport(
            outcomes=tuple(
                self._outcome(edit, found.get(edit.id), answers.get(edit.id, ""), seconds / len(fresh))
                for edit in edits
            ),
            replaced=tuple(held[edit.prompt] for edit in fresh if edit.prompt in held),
            dropped=(),
            seconds=seconds,
            cpu_seconds=cpu_seconds,
        )

    def validate(self, edits: Sequence[Edit]) -> None:
        """Raises EditError for edits that cannot be applied."""
        check_unique(edits)
        live = {edit.id for edit in self.edits}
        for edit in edits:
            if edit.id in live:
                raise EditError(f"field 'id': edit {edit.id!r} was applied already; leave it out, or give a new id")
            if self.needs_subject and edit.subject is None:
                raise EditError(
                    f"field 'subject': edit {edit.id!r} names none, and {type(self).__name__} writes at the subject's "
                    "last token; name the subject as the prompt writes it, or choose another editor"
                )
            self.encoder.check(edit)
        reserve = len(self.encoder.bos) + len(self.encoder.terminator)
        check_lengths(edits, lambda text: len(self.tokenizer(text)["input_ids"]), self.encoder.context, reserve)

    def evaluating(self) -> AbstractContextManager[None]:
        """Dropout off, and back as it was afterwards."""
        return evaluating(self.model)

    def _answers(self, edits: Sequence[Edit]) -> list[str]:
        """What the model now generates for the prompts of `edits`."""
        if not edits:
            return []
        prompts = [self.encoder.prompt(edit.prompt) for edit in edits]
        if isinstance(self, WholePrompts):
            prompts = self.given(prompts)
        limits = [len(self.encoder.target(e.prompt, e.target)) + SPARE_TOKENS for e in edits]
        with self.evaluating():
            out = greedy(self.model, prompts, stops=self.encoder.stops, max_new_tokens=limits)
        return [self.encoder.answer(ids) for ids in out]

    def _outcome(self, edit: Edit, applied: Applied | None, answer: str, seconds: float) -> Outcome:
        right = self.encoder.answer(self.encoder.target(edit.prompt, edit.target))
        status = SUPERSEDED if applied is None else VERIFIED if answer == right else FAILED
        applied = applied or Applied()
        milliseconds = 0.0 if status == SUPERSEDED else 1000 * seconds
        return Outcome(
            id=edit.id,
            status=status,
            answer=answer,
            steps=applied.steps,
            loss=applied.loss,
            milliseconds=milliseconds,
        )

    # -- saving -------------------------------------------------------------------------------

    def save_pretrained(self, folder: Path) -> None:
        """Writes the edits so far to a folder: JSON and safetensors, never the base."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        write_tensors(folder / FILE, tensors, self._about())
        edits = json.dumps([edit.to_dict() for edit in self.edits])
        (folder / EDITS).write_text(edits, encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Puts saved edits in place. Raises ArtifactError where they are damaged, or of another base or editor."""
        tensors = read_tensors(folder / FILE, self._about())
        try:
            edits = [Edit.from_dict(row) for row in json.loads((folder / EDITS).read_text(encoding="utf-8"))]
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{folder}: its edits cannot be read ({error}); make them anew") from error
        if tensors is None:
            raise ArtifactError(f"{folder}: is damaged, or was written by another editor or for another base")
        self.prepare()
        self.edits = tuple(edits)
        self.load_tensors(tensors)

    def _about(self) -> str:
        about = {
            "editor": type(self).__name__,
            "settings": self.settings.to_dict(),
            "base": self._base,
        }
        return json.dumps(about, sort_keys=True)


class WholePrompts:
    """Mixed into an editor that looks at whole prompts and not at single tokens. Whoever asks it says which they are.

    What it is told holds for one forward or one `generate`.
    """

    def given(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
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
        self._check()
        self.original: dict[str, Tensor] = {name: p.data for name, p in self.parameters.items()}
        """The base's own tensors."""
        self.weights: dict[str, Tensor] = dict(self.original)
        """What is in their place now."""

    def _check(self) -> None:
        away = next((name for name, p in self.parameters.items() if p.device.type == "meta"), None)
        if away is not None:
            raise UnsupportedModelError(
                f"{away} is offloaded, and {type(self).__name__} must change it in place; load the model without "
                "offloading"
            )

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Serves these in place of the parameters they are named after, in the base's own precision."""
        for name, weight in weights.items():
            parameter = self.parameters[name]
            own = self.original[name]
            kept = own if weight is own else weight.detach().to(parameter.device, parameter.dtype)
            if kept.shape != parameter.shape:
                raise ArtifactError(f"{name}: {tuple(parameter.shape)} expected, {tuple(kept.shape)} found")
            self.weights[name] = parameter.data = kept

    @contextmanager
    def disabled(self) -> Iterator[PreTrainedModel]:
        with self._swapped(self.original):
            yield self.model

    @contextmanager
    def _swapped(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        before = {name: self.parameters[name].data for name in weights}
        for name, weight in weights.items():
            self.parameters[name].data = weight
        try:
            yield
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

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if set(tensors) != set(self.parameters):
            raise ArtifactError(f"parameters {sorted(self.parameters)} expected, {sorted(tensors)} found")
        for name, tensor in tensors.items():  # the base's own stay the base's own
            own = self.original[name]
            self.put({name: own if torch.equal(tensor.cpu(), own.cpu()) else tensor})


class LayerEditor(Baseline[S]):
    """An editor that puts a layer of its own in the place of one of the base's, which it keeps inside."""

    def __init__(self, context: EditingContext, settings: S, path: str, layer: nn.Module) -> None:
        """layer: takes the place of the module at `path` at once; while its attribute `active` is False, and while it
        holds no edit, it must be that module, bit for bit."""
        super().__init__(context, settings)
        self.layer: Any = layer
        parent_path, _, self._name = path.rpartition(".")
        self._parent = context.model.get_submodule(parent_path)
        self._own = getattr(self._parent, self._name)
        setattr(self._parent, self._name, layer)

    @contextmanager
    def disabled(self) -> Iterator[PreTrainedModel]:
        before = self.layer.active
        self.layer.active = False
        try:
            yield self.model
        finally:
            self.layer.active = before

    def unwrap(self) -> PreTrainedModel:
        setattr(self._parent, self._name, self._own)
        return self.model
