"""`wise.wrap`: a Hugging Face causal LM with a side memory that can be edited while it is in use.

The wrapped model is the user's own, with one module replaced; `unwrap` puts the same module back. Everything that
transformers can do with the model it can do with the wrapped one. An edit builds a new `MemoryState` beside the one
that is served and swaps it in once all is verified: whatever is refused or fails leaves the model as it was.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from os import PathLike
from reprlib import repr as shortened
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise import saving
from wise.architectures import TargetModule, locate
from wise.config import WiseConfig
from wise.edits import Conversation, Edit, as_edit, conversations
from wise.errors import ArtifactError, ConfigError, EditError, UnsupportedModelError
from wise.explain import Answer, GeneratedIds, RowRoutes, explained, generated_ids, prompt_ids
from wise.loading import check_tokenizer, loaded, transformers_model
from wise.memory import modules
from wise.memory.base_watch import REMEDY, BaseState, BaseWatch
from wise.memory.fingerprint import Fingerprint, fingerprint
from wise.memory.layer import SideMemoryLayer, as_child
from wise.memory.sequences import SequenceReader
from wise.memory.side_memory import Route, SideMemory
from wise.memory.state import MemoryState
from wise.router.assemble import assemble
from wise.router.chat_template import ChatTemplate
from wise.router.encoder import load_encoder
from wise.router.hybrid import RouterInputs
from wise.router.readers import RelationReader
from wise.supported import check_cache, check_supported
from wise.training.build_trainer import build_trainer
from wise.training.encoding import Encoder, learn_encoder
from wise.training.generation import greedy
from wise.training.report import DeleteReport, EditReport, PrecisionReport
from wise.training.shallow_copy import copied_along
from wise.training.splice import SplicedModel
from wise.training.trainer import Trainer
from wise.training.writers.answer import AnswerWriter
from wise.training.writers.base import silent
from wise.workers import SharedWriter, Workers, traits_of

logger = logging.getLogger(__name__)

ANSWER_TOKENS = 32
_CACHES = (
    "_latest", "_snapshots", "encoder", "_trainer", "_workers", "_lock", "_lock_of_memory", "_default_memory",
    "_serving_memories"
)  # fmt: skip
"""Attributes that a copy of a wrapped model does not get."""
_FIRST = ("model", "_outer", "_layer")
"""Attributes to which the others are forwarded, so they are not themselves looked for in the wrapped model."""
_EMPTY = MemoryState()


class WiseModel(nn.Module):
    """A causal LM with a side memory. Every attribute that is not defined here is the wrapped model's."""

    model: PreTrainedModel
    """The model of transformers: the one that was wrapped, or the one inside a model of peft."""

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
        config = WiseConfig() if config is None else config
        if not isinstance(config, WiseConfig):
            raise ConfigError(f"config={config!r:.80}: expected a wise.WiseConfig, such as WiseConfig(mode='merge')")
        if reader is not None and config.mode != "hybrid":
            raise ConfigError(f"reader={reader.name!r}: mode={config.mode!r} has no reader; use mode='hybrid'")
        outer, model = model, transformers_model(model)
        check_tokenizer(tokenizer)
        if any(isinstance(module, SideMemoryLayer) for module in model.modules()):
            raise UnsupportedModelError("this model is wrapped already: call unwrap() on it first")
        check_supported(model, config.mode)
        self._target_module: TargetModule = locate(model, config)
        with modules.evaluating(model):
            SplicedModel(model, self._target_module)  # a model on which no edit can be fitted is refused here
            if config.mode == "hybrid":
                check_cache(model)
        self.inputs: RouterInputs | None = None
        if config.mode == "hybrid":
            self.inputs = RouterInputs(
                reader=reader or load_encoder(config.encoder, relations=config.relations),
                sequences=SequenceReader(model.base_model),
                tokenizer=tokenizer,
                template=ChatTemplate.learn(tokenizer),
            )
        self.model = model
        as_child(self, "model")
        self._outer = (outer,)
        """What was wrapped, in a tuple so that its parameters are not registered twice."""
        self.tokenizer = tokenizer
        self.wise_config = config
        self.state = MemoryState()
        self._source: tuple[str, str] | None = None
        """Name and revision of the base as a loaded memory has them. They stay as they are."""
        self._watch = BaseWatch(model)
        self._reset_caches()
        place = modules.inside_adapters(model, self._target_module.path)
        block = model.get_submodule(f"{self._target_module.blocks}.{self._target_module.layer}")
        self._layer = (SideMemoryLayer(model.get_submodule(place), block),)  # in a tuple for the same reason
        self.layer.register_forward_pre_hook(self._watch)
        try:
            if self.inputs is not None and self.inputs.sequences is not None:
                self.inputs.sequences.attach()
            modules.put_module(model, place, self.layer)
        except BaseException:
            self.unwrap()
            raise

    def _reset_caches(self) -> None:
        """Caches that a copy of the model does not get, and the lock of its edits."""
        self._latest: tuple[MemoryState, torch.device, torch.dtype, SideMemory | None] | None = None
        """The memory that was assembled last, with its state, device and dtype."""
        self._snapshots: WeakKeyDictionary[MemoryState, BaseState | None] = WeakKeyDictionary()
        """The states that `snapshot` gave, with the base on which each was verified."""
        self._trainer: tuple[Trainer, BaseState] | None = None
        """With the base that it measured."""
        self._lock = threading.RLock()  # held by the thread that edits
        self._lock_of_memory = threading.Lock()  # held while the memory in the layer is swapped
        self._default_memory: tuple[SideMemory | None] = (None,)
        """The memory that stands in the layer where no `serving` has put another there."""
        self._serving_memories: dict[object, SideMemory | None] = {}
        """Those that blocks of `serving` have put there, by a token of each block, the latest last."""
        self._workers: Workers | None = None
        self.precision_report: PrecisionReport | None = None
        """What `from_pretrained` found, if it was allowed to take a memory of another precision and did."""

    @property
    def layer(self) -> SideMemoryLayer:
        """The module that holds the memory, in the place of the base's own."""
        return self._layer[0]

    @property
    def target_module(self) -> TargetModule:
        """Where the layer stands. peft may move it, as it puts an adapter on or takes one off."""
        return replace(self._target_module, path=self._path() or self._target_module.path)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and for other processes: all but what refers to this very object."""
        return {name: value for name, value in vars(self).items() if name not in _CACHES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._reset_caches()
        self._watch.verified = self._watch.state() if self.state.edits else None

    def _path(self) -> str | None:
        return next((path for path, module in self.model.named_modules() if module is self.layer), None)

    def unwrap(self) -> PreTrainedModel:
        """Puts the base's own layer back and returns the model that was wrapped."""
        if (path := self._path()) is not None:
            modules.completed(lambda: modules.put_module(self.model, path, self.layer.base_module))
        if self.inputs is not None and self.inputs.sequences is not None:
            modules.completed(self.inputs.sequences.remove)
        return self._outer[0]

    @property
    def is_wrapped(self) -> bool:
        """False once `unwrap` has put the base's own layer back."""
        return self._path() is not None

    # -- what transformers sees ---------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The forward of the wrapped model, with all its arguments. A trainer looks for those that are named here."""
        named = {"attention_mask": attention_mask, "position_ids": position_ids, "labels": labels}
        kwargs |= {name: value for name, value in named.items() if value is not None}
        return self.model(*(() if input_ids is None else (input_ids,)), **kwargs)

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
            return output, self._explained(generated_ids(self.model, ids, kwargs, output))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            attribute = inspect.getattr_static(type(self), name, None)
            if isinstance(attribute, property | cached_property):  # its own AttributeError is to be seen, and no other
                return attribute.__get__(self)
            if name in _FIRST:  # not set yet: there is nothing to forward to
                raise
        try:
            return getattr(self._outer[0], name)
        except AttributeError as error:
            raise AttributeError(
                f"neither WiseModel nor the {type(self._outer[0]).__name__} in it has the attribute {name!r}", name=name
            ) from error

    # -- what editing needs --------------------------------------------------------------------

    @cached_property
    def encoder(self) -> Encoder:
        """Maps prompts and targets to ids for this base; learned from the base at first use."""
        with self.evaluating(), self._serving_copy(MemoryState()) as base:
            return learn_encoder(base, self.tokenizer, self.wise_config)

    @property
    def trainer(self) -> Trainer:
        """Built at the first edit, since it measures the base, and again when the model was moved, cast or trained."""
        trainer = self._trainer
        if trainer is None or not self._is_current(*trainer):
            with self.evaluating(), self._serving_copy(MemoryState()) as model:
                base = self._watch.state()
                built = build_trainer(
                    model, self.target_module, self.encoder, self.wise_config, inputs=self.inputs, state=self.state
                )
                if self._workers is not None and isinstance(built.writer, AnswerWriter):
                    built = replace(built, writer=SharedWriter(built.writer, self._workers, traits_of(self)))
                self._trainer = trainer = built, base
        return trainer[0]

    def use_workers(self, workers: Workers | None) -> None:
        """Has other processes fit the edits from now on (`hybrid`), with the same result; None: this one does.

        Raises ConfigError in `merge` and `retrieve`, in which edits share slots and are fitted together.
        """
        if workers is not None and self.wise_config.mode != "hybrid":
            raise ConfigError(f"workers: mode={self.wise_config.mode!r} fits edits together; use mode='hybrid'")
        self._workers, self._trainer = workers, None

    def _is_current(self, trainer: Trainer, base: BaseState) -> bool:
        """Whether a trainer fits the model's device and dtype, the base as it is, and the space of the live keys."""
        placed = (trainer.spliced.device, trainer.dtype) == (modules.execution_device(self.model), self.model.dtype)
        same = placed and self._watch.difference(base) is None
        return same and self.state.key_space in (None, trainer.key_space)

    def fingerprint(self) -> Fingerprint:
        """Identifies the base and the layer of the side memory."""
        identity = fingerprint(self.model, self._target_module)
        name, revision = self._source or (identity.name, identity.revision)
        return replace(identity, name=name, revision=revision)

    # -- editing -----------------------------------------------------------------------------

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The live edits, in the order in which they came."""
        return self.state.edits

    def edit(
        self,
        edits: Edit | Mapping[str, Any] | str | Iterable[Edit | Mapping[str, Any] | str],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> EditReport:
        """Writes edits into the side memory, and keeps those whose target the model then generates.

        Each is a `wise.Edit`, an object of its fields, or a statement such as "The capital of France is Lyon.", from
        which prompt and target are taken (`Edit.from_text`).

        A later edit of the same prompt replaces an earlier one. `progress` is called with the number of edits that are
        done: half of them once all are written, all once they are verified. Other threads may generate meanwhile: the
        edits are live when this returns. Another thread that edits waits for it.

        Raises EditError, with nothing changed, where an edit is not usable (`wise.Edit`), ids repeat, an edit
        does not fit the model's context, the model was unwrapped, or the base is not the one on which the live edits
        were verified, since an adapter was switched or it was trained.
        """
        self._check_wrapped()
        checked = [as_edit(edit) for edit in _listed(edits, str | Mapping)]
        if not checked:
            raise EditError("edit() was given no edits: expected one wise.Edit or a list of them")
        return self._edit(checked, progress=progress or silent)

    def replace(self, edit: Edit | Mapping[str, Any] | str) -> EditReport:
        """Replaces the live edits that have the id or the prompt of a new one.

        Nothing is left of the old edit, as after `delete`. The old edit stays if the new one does not verify.

        Raises EditError, with nothing changed, where there is none to replace, or as `edit` does.
        """
        self._check_wrapped()
        edit = as_edit(edit)
        with self._lock:  # so that no other thread deletes it meanwhile
            if not any(edit.id == other.id or edit.prompt == other.prompt for other in self.edits):
                known = f"the id {edit.id!r} or the prompt {edit.prompt!r:.80}"
                raise EditError(f"field 'id': no live edit has {known}; make a new one with edit()")
            return self._edit([edit], replacing=True)

    def _edit(self, edits: Sequence[Edit], **how: Any) -> EditReport:
        with self._lock:
            self._check_base()
            with self.evaluating():
                state, report = self.trainer.edit(self.state, edits, serve=self._serving_copy, **how)
            self._serve(state, self._watch.state())
            return report

    def delete(self, edit_ids: str | Edit | Iterable[str | Edit]) -> DeleteReport:
        """Deletes edits, so that every tensor and every output is as it would be without them.

        In `hybrid` an edit has a slot of its own, which is removed: nothing is computed and nothing else changes. In
        `merge` and `retrieve` edits share the weights of a slot. The other edits of the slot are written anew, from
        zero, which takes as long as editing did; an edit that does not verify then is reported as dropped. An edit that
        a deleted one had replaced does not come back: use `rollback` for that.

        Raises EditError, with nothing changed, for an id that is not live, or where the model was unwrapped.
        """
        self._check_wrapped()
        start, start_cpu = time.perf_counter(), time.process_time()
        with self._lock:
            several = _listed(edit_ids, str | Edit)
            deleted = self.state.live(each.id if isinstance(each, Edit) else each for each in several)
            sharing = self.state.sharing(deleted)
            state, dropped = self.state.without(deleted), tuple[str, ...]()
            if sharing:
                self._check_base()
                with self.evaluating():
                    state, dropped = self.trainer.delete(self.state, deleted, serve=self._serving_copy)
            self._serve(state, self._watch.verified)
        rewritten = tuple(i for i in sharing if i not in dropped)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        return DeleteReport(
            deleted=deleted, rewritten=rewritten, dropped=dropped, seconds=seconds, cpu_seconds=cpu_seconds
        )

    def snapshot(self) -> MemoryState:
        """The current state, for `rollback`. It is immutable and costs nothing."""
        state = self.state  # looked up once, since another thread may edit
        self._snapshots[state] = self._watch.verified
        return state

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
        with self._lock:
            self._serve(snapshot, self._snapshots[snapshot])

    def _check_wrapped(self) -> None:
        if not self.is_wrapped:
            raise EditError("this model was unwrapped, so nothing would be served: wrap it again, then edit it")

    def _check_base(self) -> None:
        """The base is the one on which the live edits were verified; another one may not say them."""
        if (reason := self._watch.difference(self._watch.verified)) is not None:
            raise EditError(f"{reason}: nothing was edited; {REMEDY}")

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
        start, count = time.perf_counter(), len(state.edits)

        def report_share(share: float) -> None:
            if progress is not None:
                progress(int(share * count), count)

        with self.evaluating():
            verdicts = self.trainer.verifier.ask(state, state.edits, self.serving, report_share)
        lost = {edit_id: verdict.answer for edit_id, verdict in verdicts.items() if not verdict.right}
        made, served, seconds = made_for.precision, self.fingerprint().precision, time.perf_counter() - start
        report = PrecisionReport(made_in=made, served_in=served, edits=count, lost=lost, seconds=seconds)
        logger.log(logging.WARNING if report.lost else logging.INFO, "%s", report)
        return report

    @property
    def memory_bytes(self) -> int:
        """Bytes of slots and keys, as `save_pretrained` writes them."""
        slots = (tensor for slot in self.state.slots for tensor in slot.tensors().values())
        return sum(tensor.nbytes for tensors in (slots, self.state.keys.values()) for tensor in tensors)

    def reset(self) -> None:
        """Removes every edit."""
        with self._lock:
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

        Raises ConfigError, before anything is asked, if a chat is wanted and the base has no template, or a prompt
        fills the model's context, and EditError for an invalid conversation.
        """
        questions = [self.encoder.question(prompt, chat=chat) for prompt in conversations(prompts)]
        ids = [question.ids for question in questions]
        for question in questions:
            if len(question.ids) >= self.encoder.context:
                raise ConfigError(
                    f"the prompt {shortened(question.text)} takes {len(question.ids)} tokens, and the context of this "
                    f"model holds {self.encoder.context}, the answer included: shorten it"
                )
        with self.evaluating():
            while True:
                memory = self.layer.memory
                out = greedy(self.model, ids, stops=self.encoder.stops, max_new_tokens=max_new_tokens)
                read = [((*prompt, *new), len(prompt)) for prompt, new in zip(ids, out, strict=True)]
                routes = self._explained(
                    [GeneratedIds(ids=row, columns=tuple(range(len(row))), prompt_tokens=count) for row, count in read]
                )
                if memory is self.layer.memory:  # otherwise another thread has edited: answers and routes may differ
                    break
        return [
            Answer(
                prompt=question.text,
                text=self.encoder.answer(new, chat=question.chat),
                tokens=tuple(map(self._token, (*question.ids, *new))),
                prompt_tokens=len(question.ids),
                routes=answer_routes,
            )
            for question, new, answer_routes in zip(questions, out, routes, strict=True)
        ]

    def _explained(self, texts: Sequence[GeneratedIds]) -> tuple[RowRoutes, ...]:
        memory, layer = self.layer.memory, self.layer
        state = self._served_by(memory)
        return explained(texts, model=self.model, layer=layer, memory=memory, state=state, decode=self._token)

    def _token(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    @torch.no_grad()
    def route(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Route | None:
        """The route of every token of `[batch, seq]` ids, rows flattened; None without edits."""
        memory, device = self.layer.memory, modules.execution_device(self.model)
        if memory is None:
            return None
        mask = attention_mask.to(device) if attention_mask is not None else None
        with modules.recorded_inputs({0: self.layer}) as inputs:
            self.model(input_ids.to(device), attention_mask=mask, use_cache=False)
        route: Route = memory.route(inputs[0])
        return route

    @property
    def served(self) -> MemoryState:
        """The state that is served: `state`, except within `serving`."""
        return self._served_by(self.layer.memory)

    def _served_by(self, memory: SideMemory | None) -> MemoryState:
        return _EMPTY if memory is None else memory.state or self.state

    def disabled(self) -> AbstractContextManager[PreTrainedModel]:
        """The base answers alone within a `with` block, in all threads."""
        return self.serving(MemoryState())

    @contextmanager
    def serving(self, state: MemoryState) -> Iterator[PreTrainedModel]:
        """`state` is served within a `with` block, in all threads; yields the model to ask.

        Of several blocks at once the one that began last counts. What is edited meanwhile is served after them.
        """
        memory, block = self._assembled(state), object()

        def restore() -> None:
            with self._lock_of_memory:
                self._serving_memories.pop(block, None)
                self._put_memory()

        with self._lock_of_memory:
            self._default_memory = self._default_memory if self._serving_memories else (self.layer.memory,)
        with modules.restoring(restore):
            with self._lock_of_memory:
                self._serving_memories[block] = memory
                self._put_memory()
            yield self.model

    def _put_memory(self) -> None:
        self.layer.memory = next(reversed(self._serving_memories.values()), self._default_memory[0])

    @contextmanager
    def _serving_copy(self, state: MemoryState) -> Iterator[PreTrainedModel]:
        """Yields a copy that serves `state` and shares all else with this model, which serves on what it served."""
        path = self.target_module.path
        model: PreTrainedModel = copied_along(self.model, path)
        model.get_submodule(path).memory = self._assembled(state)
        yield model

    def _serve(self, state: MemoryState, base: BaseState | None = None) -> None:
        """Serves a state; one without edits keeps nothing else. base: the one on which it was verified."""
        state = state if state.edits else MemoryState()
        memory = self._assembled(state)

        def put() -> None:
            with self._lock_of_memory:
                self._default_memory, self.state = (memory,), state
                self._put_memory()
            self._watch.verified = base if state.edits else None

        modules.completed(put)

    def start_from(self, state: MemoryState, base: Fingerprint) -> None:
        """Serves a state that was made elsewhere, on `base`, by whose name and revision this model's base then goes.

        Raises ArtifactError where its keys were made by another relation reader.
        """
        if self.inputs is not None and state.edits and state.key_space != self.inputs.reader.key_space:
            reader = getattr(state.key_space, "reader", "none")
            raise ArtifactError(
                f"the keys of this memory were made by the relation reader {reader!r} and this model has "
                f"{self.inputs.reader.name!r}: wrap with that reader, or make the edits anew"
            )
        self._source = base.name, base.revision
        self._serve(state, self._watch.state())

    def _assembled(self, state: MemoryState) -> Any:
        """The memory of a state. The one that an edit was verified with is served afterwards, not built again."""
        parts, latest = (state, self.layer.device(), self.model.dtype), self._latest  # other threads set it, too
        if latest is not None and latest[:3] == parts:
            return latest[3]
        memory = assemble(state, self.wise_config, inputs=self.inputs, device=parts[1], dtype=parts[2])
        if memory is not None:
            memory.state = state  # what is served is swapped in with it
        self._latest = *parts, memory
        return memory

    def evaluating(self) -> AbstractContextManager[None]:
        """Dropout off, and back as it was afterwards."""
        return modules.evaluating(self.model)

    # -- on disk and on the hub --------------------------------------------------------------

    save_pretrained = saving.save_pretrained
    push_to_hub = saving.push_to_hub
    from_pretrained = classmethod(saving.from_pretrained)


def _listed(several: Any, single: Any) -> Iterable[Any]:
    return [several] if isinstance(several, single) or not isinstance(several, Iterable) else several


def wrap(
    model: PreTrainedModel | str | PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: WiseConfig | None = None,
    *,
    reader: RelationReader | None = None,
) -> WiseModel:
    """Wraps a causal LM for lifelong editing. The model itself is wrapped, not a copy.

    model: of transformers, or one of peft around it; or the folder or hub id of one, which is loaded.
    tokenizer: None takes the one beside the model, in the folder or at the hub id that it was loaded from.

    With accelerate's offloading, dispatch the model first and wrap it then.

    reader: compares questions (`hybrid`); None takes the sentence encoder of the settings, or the one that ships.

    Raises ConfigError for a layer that the model does not have, or a model, tokenizer or encoder that cannot be loaded,
    and UnsupportedModelError for an unknown architecture, packed experts or anything that is no causal LM.
    """
    return WiseModel(*loaded(model, tokenizer), config, reader=reader)
