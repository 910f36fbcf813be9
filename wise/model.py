"""`wise.wrap`: a Hugging Face causal LM with a side memory that can be edited while it is in use.

The wrapped model is the user's own, with one module replaced; `unwrap` puts the same module back. Everything that
transformers can do with the model it can do with the wrapped one. An edit builds a new `MemoryState` beside the one
that is served and swaps it in once all is verified: whatever is refused or fails leaves the model as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import PushToHubMixin

from wise.architectures import ValueProjection, locate
from wise.config import WiseConfig
from wise.edits import Conversation, Edit, Message
from wise.errors import ArtifactError, ConfigError, EditError, UnsupportedModelError
from wise.explain import Answer, GeneratedIds, Provenance, generated_ids, prompt_ids
from wise.memory.artifact import load_memory, save_memory
from wise.memory.fingerprint import Fingerprint, fingerprint
from wise.memory.layer import SideMemoryLayer, execution_device
from wise.memory.sequences import SequenceReader
from wise.memory.side_memory import Route, SideMemory
from wise.memory.state import MemoryState
from wise.router.assemble import assemble
from wise.router.encoder import load_encoder
from wise.router.hybrid import RouterInputs
from wise.router.readers import RelationReader
from wise.router.turns import ChatTemplate
from wise.supported import check_supported, make_differentiable
from wise.training.build_trainer import build_trainer
from wise.training.encoding import Encoder, learn_encoder
from wise.training.generation import evaluating, greedy, recorded_inputs
from wise.training.report import DeleteReport, EditReport, PrecisionReport
from wise.training.trainer import Trainer

logger = logging.getLogger(__name__)

ANSWER_TOKENS = 32


class WiseModel(nn.Module, PushToHubMixin):
    """A causal LM with a side memory. Every attribute that is not defined here is the wrapped model's."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: WiseConfig | None = None,
        *,
        reader: RelationReader | None = None,
    ) -> None:
        """See `wise.wrap`."""
        super().__init__()
        config = config or WiseConfig()
        if reader is not None and config.mode != "hybrid":
            raise ConfigError(f"reader={reader.name!r}: mode={config.mode!r} has no reader; use mode='hybrid'")
        if any(isinstance(module, SideMemoryLayer) for module in model.modules()):
            raise UnsupportedModelError("this model is wrapped already: call unwrap() on it first")
        check_supported(model, config.mode)
        self.projection: ValueProjection = locate(model, config)
        make_differentiable(model)
        self.inputs: RouterInputs | None = None
        if config.mode == "hybrid":
            self.inputs = RouterInputs(
                reader=reader or load_encoder(config.encoder, taught=config.relations),
                sequences=SequenceReader(model.base_model),
                tokenizer=tokenizer,
                template=ChatTemplate.learn(tokenizer),
            )
        self.model = model
        self.tokenizer = tokenizer
        self.wise_config = config
        self.state = MemoryState()
        self._served = self.state
        """The state that is served: `state`, except within `serving`."""
        self._latest: tuple[MemoryState, torch.device, torch.dtype, SideMemory | None] | None = None
        """The memory that was assembled last, with its state, device and dtype."""
        self._snapshots: WeakSet[MemoryState] = WeakSet()
        self._encoder: Encoder | None = None
        self._trainer: Trainer | None = None
        self.precision_report: PrecisionReport | None = None
        """What `from_pretrained` found, if it was allowed to take a memory of another precision and did."""
        parent, name = self._place()
        self.layer = SideMemoryLayer(getattr(parent, name))
        setattr(parent, name, self.layer)  # last, so that a refusal leaves the model as it was

    def _place(self) -> tuple[nn.Module, str]:
        path, _, name = self.projection.path.rpartition(".")
        return self.model.get_submodule(path), name

    def unwrap(self) -> PreTrainedModel:
        """Puts the base's own layer back and returns the model that was wrapped."""
        if self.is_wrapped:
            parent, name = self._place()
            setattr(parent, name, self.layer.base_layer)
            if self.inputs is not None:
                self.inputs.sequences.remove()
        return self.model

    @property
    def is_wrapped(self) -> bool:
        """False once `unwrap` has put the base's own layer back."""
        parent, name = self._place()
        return getattr(parent, name) is self.layer

    # -- what transformers sees ---------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, return_routes: bool = False, **kwargs: Any) -> Any:
        """`model.generate`, every option of it.

        With `return_routes` it returns `(output, tuple of RowRoutes)`: for each sequence, the edits that were active at
        each token and the closest other edits. The sequences are read once more for it.

        Raises ConfigError, before anything is generated, for `return_routes` without the prompts' ids.
        """
        ids = prompt_ids(args, kwargs) if return_routes else None
        output = self.model.generate(*args, **kwargs)  # type: ignore[operator]
        if ids is None:
            return output
        with self.evaluating():
            return output, self._provenance().explain(generated_ids(self.model, ids, kwargs, output))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # not set yet: there is nothing to forward to
                raise
            return getattr(self.model, name)

    # -- what editing needs --------------------------------------------------------------------

    @property
    def encoder(self) -> Encoder:
        """Maps prompts and targets to ids for this base; learned from the base at first use."""
        if self._encoder is None:
            with self.evaluating(), self.disabled():
                self._encoder = learn_encoder(self.model, self.tokenizer, self.wise_config)
        return self._encoder

    @property
    def trainer(self) -> Trainer:
        """Built at the first edit, since it measures the base, and again when the model was moved or cast."""
        if self._trainer is None or not self._is_current(self._trainer):
            with self.evaluating(), self.disabled():
                self._trainer = build_trainer(
                    self.model,
                    self.projection,
                    self.encoder,
                    self.wise_config,
                    inputs=self.inputs,
                    state=self.state,
                )
        return self._trainer

    def _is_current(self, trainer: Trainer) -> bool:
        """Whether a trainer fits the model's device and dtype, and the space of the live keys."""
        placed = (trainer.spliced.device, trainer.dtype) == (execution_device(self.model), self.model.dtype)
        return placed and self.state.key_space in (None, trainer.key_space)

    def fingerprint(self) -> Fingerprint:
        """Identifies the base and the layer of the side memory."""
        return fingerprint(self.model, self.projection)

    # -- editing -----------------------------------------------------------------------------

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The live edits, in the order in which they came."""
        return self.state.edits

    def edit(
        self, edits: Edit | Sequence[Edit], *, progress: Callable[[int], None] | None = None
    ) -> EditReport:
        """Writes edits into the side memory, and keeps those whose target the model then generates.

        A later edit of the same prompt replaces an earlier one. `progress` is called with the number of edits that are
        done: half of them once all are written, all once they are verified.

        Raises EditError, with nothing changed, where an edit is not usable (`wise.Edit`), ids repeat, an edit
        does not fit the model's context, or the model was unwrapped.
        """
        self._check_wrapped()
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

    def replace(self, edit: Edit) -> EditReport:
        """Replaces the live edits that have the id or the prompt of a new one.

        Nothing is left of the old edit, as after `delete`. The old edit stays if the new one does not verify.

        Raises EditError, with nothing changed, where there is none to replace, or as `edit` does.
        """
        self._check_wrapped()
        if not isinstance(edit, Edit):
            raise EditError(f"replace() takes one wise.Edit, not {type(edit).__name__}: {edit!r:.80}")
        if not any(edit.id == other.id or edit.prompt == other.prompt for other in self.edits):
            raise EditError(
                f"field 'id': no live edit has the id {edit.id!r} or the prompt {edit.prompt!r:.80}; make a new one "
                "with edit()"
            )
        with self.evaluating():
            state, report = self.trainer.edit(self.state, [edit], serve=self.serving, replacing=True)
        self._serve(state)
        return report

    def delete(self, edit_ids: str | Iterable[str]) -> DeleteReport:
        """Deletes edits, so that every tensor and every output is as it would be without them.

        In `hybrid` an edit has a slot of its own, which is removed: nothing is computed and nothing else changes. In
        `merge` and `retrieve` edits share the weights of a slot. The other edits of the slot are written anew, from
        zero, which takes as long as editing did; an edit that does not verify then is reported as dropped. An edit that
        a deleted one had replaced does not come back: use `rollback` for that.

        Raises EditError, with nothing changed, for an id that is not live, or where the model was unwrapped.
        """
        self._check_wrapped()
        begun, cpu = time.perf_counter(), time.process_time()
        deleted = self.state.live([edit_ids] if isinstance(edit_ids, str) else edit_ids)
        sharing = self.state.sharing(deleted)
        state, dropped = self.state.without(deleted), tuple[str, ...]()
        if sharing:
            with self.evaluating():
                state, dropped = self.trainer.delete(self.state, deleted, serve=self.serving)
        self._serve(state)
        return DeleteReport(
            deleted=deleted,
            rewritten=tuple(i for i in sharing if i not in dropped),
            dropped=dropped,
            seconds=time.perf_counter() - begun,
            cpu_seconds=time.process_time() - cpu,
        )

    def snapshot(self) -> MemoryState:
        """The current state, for `rollback`. It is immutable and costs nothing."""
        self._snapshots.add(self.state)
        return self.state

    def rollback(self, snapshot: MemoryState) -> None:
        """Serves a snapshot of this model again, bit for bit.

        Raises EditError, with nothing changed, for anything but a snapshot that this very model gave, or where the
        model was unwrapped.
        """
        self._check_wrapped()
        if not isinstance(snapshot, MemoryState) or snapshot not in self._snapshots:
            raise EditError(
                f"rollback() was given a {type(snapshot).__name__} that is no snapshot of this model: give what its "
                "own snapshot() returned; a memory of another model or process is saved and read with save_pretrained "
                "and from_pretrained"
            )
        self._serve(snapshot)

    def _check_wrapped(self) -> None:
        if not self.is_wrapped:
            raise EditError("this model was unwrapped, so nothing would be served: wrap it again, then edit it")

    def prepare(self) -> None:
        """Measures the base, which takes seconds; otherwise the first edit does it."""
        _ = self.trainer

    def validate(self, edits: Sequence[Edit]) -> None:
        """Raises EditError for edits that `edit` would refuse, and changes nothing."""
        self.trainer.validate(self.state, edits)

    def ask_again(
        self, state: MemoryState, made_for: Fingerprint, *, progress: Callable[[int, int], None] | None = None
    ) -> PrecisionReport:
        """Asks every edit of a state that was made on another precision of this base; logs how many hold.

        progress: called with how many edits are done, and of how many.
        """
        begun, count = time.perf_counter(), len(state.edits)

        def shown(share: float) -> None:
            if progress is not None:
                progress(int(share * count), count)

        with self.evaluating():
            verdicts = self.trainer.verifier.ask(state, state.edits, self.serving, shown)
        report = PrecisionReport(
            made_in=made_for.precision,
            served_in=self.fingerprint().precision,
            edits=count,
            lost={edit_id: verdict.answer for edit_id, verdict in verdicts.items() if not verdict.right},
            seconds=time.perf_counter() - begun,
        )
        logger.log(logging.WARNING if report.lost else logging.INFO, "%s", report)
        return report

    @property
    def memory_bytes(self) -> int:
        """Bytes of slots and keys, as `save_pretrained` writes them."""
        slots = (tensor for slot in self.state.slots for tensor in slot.tensors().values())
        return sum(tensor.nbytes for tensors in (slots, self.state.keys.values()) for tensor in tensors)

    def reset(self) -> None:
        """Removes every edit."""
        self._serve(MemoryState())

    # -- asking -------------------------------------------------------------------------------

    def ask(
        self,
        prompts: str | Conversation | Sequence[str | Conversation],
        *,
        chat: bool | None = None,
        max_new_tokens: int = ANSWER_TOKENS,
    ) -> list[Answer]:
        """Greedy answers up to the model's own stop, with the route of every token that was read.

        prompts: texts, or conversations (`role` and `content` of each message, the user's question last), or one of
        them.
        chat: whether texts are asked as turns of a chat; False asks them as plain text to be completed. None asks a
        chat in `hybrid` if the base has a chat template, else plain text.

        Raises ConfigError, before anything is asked, if a chat is wanted and the base has no template, and EditError
        for an invalid conversation.
        """
        questions = [self.encoder.question(prompt, chat=chat) for prompt in _several(prompts)]
        ids = [question.ids for question in questions]
        with self.evaluating():
            out = greedy(self.model, ids, stops=self.encoder.stops, max_new_tokens=max_new_tokens)
            rows = [(*prompt, *new) for prompt, new in zip(ids, out, strict=True)]
            read = [
                GeneratedIds(ids=row, columns=tuple(range(len(row))), prompt_tokens=len(prompt))
                for row, prompt in zip(rows, ids, strict=True)
            ]
            routes = self._provenance().explain(read)
        return [
            Answer(
                prompt=question.text,
                text=self.encoder.answer(row[row_routes.prompt_tokens :], chat=question.chat),
                tokens=tuple(map(self._token, row)),
                prompt_tokens=row_routes.prompt_tokens,
                routes=row_routes,
            )
            for question, row, row_routes in zip(questions, rows, routes, strict=True)
        ]

    def _provenance(self) -> Provenance:
        return Provenance(model=self.model, layer=self.layer, state=self._served, decode=self._token)

    def _token(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    @torch.no_grad()
    def route(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Route | None:
        """The route of every token of `[batch, seq]` ids, rows flattened; None without edits."""
        memory = self.layer.memory
        if memory is None:
            return None
        device = execution_device(self.model)
        mask = attention_mask.to(device) if attention_mask is not None else None
        with recorded_inputs({0: self.layer}) as seen:
            self.model(input_ids.to(device), attention_mask=mask, use_cache=False)
        route: Route = memory.route(seen[0])
        return route

    @property
    def served(self) -> MemoryState:
        """The state that is served: `state`, except within `serving`."""
        return self._served

    @contextmanager
    def disabled(self) -> Iterator[PreTrainedModel]:
        """The base answers alone within a `with` block."""
        with self.serving(MemoryState()) as model:
            yield model

    @contextmanager
    def serving(self, state: MemoryState) -> Iterator[PreTrainedModel]:
        """`state` is served within a `with` block; yields the model to ask."""
        before = self.layer.memory, self._served
        self.layer.memory, self._served = self._assembled(state), state
        try:
            yield self.model
        finally:
            self.layer.memory, self._served = before

    def _serve(self, state: MemoryState) -> None:
        """Serves a state; one without edits keeps nothing else."""
        state = state if state.edits else MemoryState()
        memory = self._assembled(state)
        self.state, self._served, self.layer.memory = state, state, memory

    def _start_from(self, state: MemoryState) -> None:
        """Serves a state that was not made here.

        Raises ArtifactError where its keys were made by another relation reader.
        """
        if self.inputs is not None and state.edits and state.key_space != self.inputs.reader.key_space:
            found = getattr(state.key_space, "reader", "none")
            raise ArtifactError(
                f"the keys of this memory were made by the relation reader {found!r} and this model has "
                f"{self.inputs.reader.name!r}: wrap with that reader, or make the edits anew"
            )
        self._serve(state)

    def _assembled(self, state: MemoryState) -> Any:
        """The memory of a state. The one that an edit was verified with is served afterwards, not built again."""
        device, dtype = self.layer.device(), self.model.dtype
        if self._latest is None or self._latest[:3] != (state, device, dtype):
            memory = assemble(state, self.wise_config, inputs=self.inputs, device=device, dtype=dtype)
            self._latest = state, device, dtype, memory
        return self._latest[3]

    def evaluating(self) -> AbstractContextManager[None]:
        """Dropout off, and back as it was afterwards."""
        return evaluating(self.model)

    # -- on disk and on the hub --------------------------------------------------------------

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
        *,
        reader: RelationReader | None = None,
        allow_precision: bool = False,
        progress: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Wraps `model` with the memory saved at `path`, a folder or a hub id; `kwargs` as for `load_memory`.

        reader: the one that its keys were made with, as for `wise.wrap` (`hybrid`).
        allow_precision: take a memory that was made on this base in another precision (a cast or quantized copy). Every
        edit is then asked again, and all stay live: `precision_report` says which hold, and so does the log. `progress`
        is called with how many were asked, and of how many.

        Raises ArtifactError, with `model` as it was, where the memory is incomplete, damaged, was made for another
        base, or in another precision that is not allowed.
        """
        config, state, base = load_memory(path, **kwargs)
        try:
            wrapped = cls(model, tokenizer, config, reader=reader)
        except (ConfigError, UnsupportedModelError) as error:
            raise ArtifactError(
                f"the memory at {path} stands beside {base.path} of a {base.model_type} base and does not "
                f"fit this model: {error}"
            ) from error
        try:
            same = base.check(wrapped.fingerprint(), allow_precision=allow_precision)
            wrapped._start_from(state)
            if not same:
                wrapped.precision_report = wrapped.ask_again(state, base, progress=progress)
        except BaseException:
            wrapped.unwrap()
            raise
        return wrapped


def _several(prompts: str | Iterable[Any]) -> list[Any]:
    """A list of prompts; a single text or conversation is a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    given = list(prompts)
    return [given] if any(isinstance(one, Message | Mapping) for one in given) else given


def wrap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: WiseConfig | None = None,
    *,
    reader: RelationReader | None = None,
) -> WiseModel:
    """Wraps a causal LM for lifelong editing. The model itself is wrapped, not a copy.

    With accelerate's offloading, dispatch the model first and wrap it then.

    reader: compares questions (`hybrid`); None takes the sentence encoder of the settings, or the one that ships.

    Raises ConfigError for a layer that the model does not have or an encoder that cannot be loaded, and
    UnsupportedModelError for an unknown architecture or packed experts.
    """
    return WiseModel(model, tokenizer, config, reader=reader)
