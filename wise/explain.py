"""Which edit answered: the route of every token of a text that an edited model has read.

A generated text is read once more, and the route of each token is reported. A route depends on the token's activation
and on the tokens before it alone, so it is the route that was taken in generation, whether in batches, in beams, from a
cache or in chunks. (Sums are taken in another order there: a score within rounding of its threshold may differ.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wise.errors import ConfigError
from wise.memory.key_space import KeySpace
from wise.memory.layer import SideMemoryLayer
from wise.memory.modules import execution_device, recorded_inputs
from wise.memory.side_memory import NO_SLOT, Evidence, Route, SideMemory
from wise.memory.state import MemoryState
from wise.router.activation import ActivationRouter
from wise.router.diagnostics import KeyDiagnostics, key_diagnostics
from wise.training.generation import right_pad, until_stop

BATCH = 16
"""Rows that are read at once."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """How close one edit came to being active at one token."""

    edit: str | None
    """Its id. In `merge`, where the memory is active as a whole, the edit with the nearest key; None without keys."""
    slot: int
    evidence: float
    """The edit may be active from 1. If this is 1 or more and the edit was not active, another one was closer."""

    @property
    def missed_by(self) -> float:
        """What the evidence lacks to 1; 0 for an edit that was active, or to which another was preferred."""
        return max(0.0, 1.0 - self.evidence)


@dataclass(frozen=True, kw_only=True)
class TokenRoute:
    """One token that the model has read."""

    place: int
    """Column of the sequence, pads counted."""
    token: str
    score: float
    """The router's score; the gate opens where it reaches the threshold."""
    threshold: float
    """Infinite if no edit is close, or none is live."""
    fired: Claim | None
    """The edit that was active; None if the base answered alone."""
    missed: Claim | None
    """The closest of the other edits. None if there is no other; in `merge` and `hybrid` also where one was active, and
    in `hybrid` where no answer can begin or no edit is a candidate."""

    @property
    def slot(self) -> int | None:
        """The slot that was active, or None for the base."""
        return None if self.fired is None else self.fired.slot


@dataclass(frozen=True, kw_only=True)
class RowRoutes:
    """The routes of a prompt and of the text generated after it.

    The last token has no route: it was generated and never read.
    """

    tokens: tuple[TokenRoute, ...]
    prompt_tokens: int
    """How many of them are the prompt."""
    missed: Claim | None
    """The closest of the edits that were active nowhere in the row; None if there is none, or in `hybrid` if none was
    compared."""
    missed_at: int | None
    """The `place` of the token where it was closest."""

    @property
    def fired(self) -> tuple[str, ...]:
        """The edits that were active, in the order in which they first were."""
        claims = (token.fired for token in self.tokens if token.fired is not None)
        return tuple(dict.fromkeys(claim.edit for claim in claims if claim.edit is not None))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; thresholds may be infinite."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A greedy answer, with the route of every token that was read."""

    prompt: str
    """The prompt; of a conversation, the user's last message."""
    text: str
    """The answer, without the base's terminator."""
    tokens: tuple[str, ...]
    """Prompt and answer, token by token."""
    prompt_tokens: int
    """How many of them are the prompt."""
    routes: RowRoutes
    """The routes of all tokens but the last, which was never read."""

    @property
    def slots(self) -> tuple[int | None, ...]:
        """Per token that was read: the slot that was active, or None for the base."""
        return tuple(token.slot for token in self.routes.tokens)


@dataclass(frozen=True, kw_only=True)
class GeneratedIds:
    """The token ids of a prompt and of the text generated after it."""

    ids: tuple[int, ...]
    """Without pads."""
    columns: tuple[int, ...]
    """The column of each in what `generate` returned."""
    prompt_tokens: int


@torch.no_grad()
def explained(
    texts: Sequence[GeneratedIds], *, model: PreTrainedModel, layer: SideMemoryLayer, memory: SideMemory | None,
    state: MemoryState, decode: Callable[[int], str],
) -> tuple[RowRoutes, ...]:
    """The routes of texts that a wrapped model has read, with the memory of a state in place.

    Raises ConfigError where the model gives NaN.
    """
    if memory is None:
        return tuple(_silent(text, decode) for text in texts)
    rows = []
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        activation = read_rows(model, layer, [text.ids for text in part])
        shape = activation.shape[:2]
        routes_and_evidence = (*memory.route(activation)[:3], *memory.evidence(activation))
        for i, text in enumerate(part):
            read = slice(0, len(text.ids) - 1)
            slot, score, threshold, *evidence = (tensor.view(shape)[i, read].cpu() for tensor in routes_and_evidence)
            near = None  # without keys, and in `hybrid`, whose decisions name the closest edit themselves
            if state.keys and isinstance(state.key_space, KeySpace):
                near = key_diagnostics(state, memory, activation[i]).select(read)
            row = _RowRouter(
                text=text, state=state, route=Route(slot, score, threshold, None), evidence=Evidence(*evidence),
                near=near, whole=isinstance(memory.router, ActivationRouter),
            )
            rows.append(row.routes(decode))
    return tuple(rows)


def _silent(text: GeneratedIds, decode: Callable[[int], str]) -> RowRoutes:
    read = zip(text.columns[:-1], text.ids[:-1], strict=True)
    nothing: dict[str, Any] = {"score": 0.0, "threshold": float("inf"), "fired": None, "missed": None}
    tokens = tuple(TokenRoute(place=place, token=decode(token), **nothing) for place, token in read)
    return RowRoutes(tokens=tokens, prompt_tokens=text.prompt_tokens, missed=None, missed_at=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class _RowRouter:
    """Makes the routes of one text from what the router says about its `t` tokens."""

    text: GeneratedIds
    state: MemoryState
    route: Route
    evidence: Evidence
    near: KeyDiagnostics | None
    whole: bool
    """The memory is active as a whole (`merge`), so no edit is preferred to another."""

    def routes(self, decode: Callable[[int], str]) -> RowRoutes:
        opened = self.route.open.tolist()
        chosen = [self._chosen(token, key) for token, key in enumerate(self.evidence.key.tolist())]
        fired = {claim.edit for claim, spoke in zip(chosen, opened, strict=True) if spoke and claim is not None}
        tokens = tuple(
            TokenRoute(
                place=self.text.columns[token],
                token=decode(self.text.ids[token]),
                score=float(self.route.score[token]),
                threshold=float(self.route.threshold[token]),
                fired=chosen[token] if spoke else None,
                missed=self._second(token, chosen[token]) if spoke else chosen[token],
            )
            for token, spoke in enumerate(opened)
        )
        at, missed = self._nearest_of_others(chosen, fired)
        missed_at = None if at is None else self.text.columns[at]
        return RowRoutes(tokens=tokens, prompt_tokens=self.text.prompt_tokens, missed=missed, missed_at=missed_at)

    def _chosen(self, token: int, key: int) -> Claim | None:
        """The edit that the router compared; None if it compared none."""
        slot = int(self.evidence.slot[token])
        if slot == NO_SLOT:
            return None
        if key < 0 and self.near is not None:
            key = int(self.near.rank[token].argmax())
        return self._claim(key, float(self.evidence.value[token]), slot)

    def _second(self, token: int, first: Claim | None) -> Claim | None:
        """The edit that the router would have compared without the first."""
        if self.near is None or self.whole or first is None:
            return None
        rank = self.near.rank[token].masked_fill(self._keys_of({first.edit}), -torch.inf)
        key = int(rank.argmax())
        return self._by_key(self.near, token, key) if rank[key] > -torch.inf else None

    def _nearest_of_others(
        self, chosen: Sequence[Claim | None], fired: set[str | None]
    ) -> tuple[int | None, Claim | None]:
        """Over all tokens, the closest of the edits that were not active; without keys, of those that were compared."""
        if self.near is None:
            others = [(c.evidence, -n, c) for n, c in enumerate(chosen) if c is not None and c.edit not in fired]
            _, place, claim = max(others, key=lambda one: one[:2], default=(0, None, None))
            return (None, None) if place is None or self.whole else (-place, claim)
        if not len(self.near.evidence) or (self.whole and fired):
            return None, None
        near = self.near.evidence.masked_fill(self._keys_of(fired), -torch.inf)
        token = int(near.max(-1).values.argmax())
        if near[token].max() == -torch.inf:
            return None, None
        return token, chosen[token] if self.whole else self._by_key(self.near, token, int(near[token].argmax()))

    def _by_key(self, near: KeyDiagnostics, token: int, key: int) -> Claim:
        return self._claim(key, float(near.evidence[token, key]), self._slots[self.state.key_owners[key]])

    def _claim(self, key: int, evidence: float, slot: int) -> Claim:
        edit_ids = self.state.slots[slot].edit_ids
        edit = self.state.key_owners[key] if key >= 0 else edit_ids[0] if self.near is None and not self.whole else None
        return Claim(edit=edit, slot=slot, evidence=evidence)

    def _keys_of(self, edits: set[str | None]) -> Tensor:
        return torch.tensor([owner in edits for owner in self.state.key_owners])

    @cached_property
    def _slots(self) -> dict[str, int]:
        return {edit_id: slot.id for slot in self.state.slots for edit_id in slot.edit_ids}


@torch.no_grad()
def read_rows(model: PreTrainedModel, layer: SideMemoryLayer, rows: Sequence[Sequence[int]]) -> Tensor:
    """The activation that enters `layer`, a module of `model`, at every token of rows of ids: `[rows, longest, f]`.

    Pads are on the right, and the activations there are meaningless. The memory in place acts as in generation.

    Raises ConfigError if the model gives NaN.
    """
    ids, mask = right_pad(rows, device=execution_device(model))
    with recorded_inputs({0: layer}) as inputs:
        # The body alone: logits of all tokens of a long text take more memory than everything else.
        model.base_model(ids, attention_mask=mask, use_cache=False)
    activation = inputs[0].view(*ids.shape, -1)  # some architectures flatten their rows
    if bool(activation.isnan().any(-1)[mask.bool().to(activation.device)].any()):
        raise ConfigError(
            "the model gives NaN where the side memory stands, so no route means anything: load it in float32 or "
            "bfloat16, and look at its weights"
        )
    return activation


def prompt_ids(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The ids `[batch, seq]` that `generate` was given. Raises ConfigError where it was given none."""
    ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.shape[1] or kwargs.get("inputs_embeds") is not None:
        raise ConfigError(
            "return_routes=True needs the ids of the prompts, as input_ids of shape [batch, seq]; "
            f"{type(ids).__name__ + ' was' if kwargs.get('inputs_embeds') is None else 'inputs_embeds were'} given"
        )
    return ids


def generated_ids(model: PreTrainedModel, ids: Tensor, kwargs: Mapping[str, Any], output: Any) -> list[GeneratedIds]:
    """One text for each sequence of `output`, beams and repeated prompts apart.

    ids: `[batch, seq]` of the prompts. kwargs: what else `generate` was given.
    """
    sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
    stops, pad = _ids(model, kwargs, "eos_token_id"), _ids(model, kwargs, "pad_token_id")
    mask = _mask(ids, kwargs.get("attention_mask"), stops, pad)
    several = len(sequences) // len(ids)  # rows of one prompt stand together
    stop_strings = kwargs.get("stop_strings") or _setting(model, kwargs, "stop_strings")
    by_words = stop_strings or kwargs.get("stopping_criteria")
    texts = []
    for row, sequence in enumerate(sequences.tolist()):
        prompt = mask[row // several].nonzero()[:, 0].tolist()
        new = _cut_at_stop(sequence[ids.shape[1] :], stops, pad if by_words else set())
        places = (*prompt, *range(ids.shape[1], ids.shape[1] + len(new)))
        texts.append(GeneratedIds(ids=tuple(sequence[i] for i in places), columns=places, prompt_tokens=len(prompt)))
    return texts


def _cut_at_stop(new: list[int], stops: set[int], pads: set[int]) -> list[int]:
    """A row up to its stop. A row without a stop loses its trailing pads, if rows may end in another way."""
    cut = until_stop(new, stops)
    while cut and cut[-1] in pads and cut[-1] not in stops:
        cut.pop()
    return cut


def _mask(ids: Tensor, mask: Tensor | None, stops: set[int], pad: set[int]) -> Tensor:
    """`[batch, seq]` bool: the tokens that are no pads. Without a given mask, as transformers guesses it."""
    if mask is not None:
        return mask.bool().cpu()
    if not pad or pad & stops:
        return torch.ones(ids.shape, dtype=torch.bool)
    return ~torch.isin(ids.cpu(), torch.tensor(sorted(pad)))


def _ids(model: PreTrainedModel, kwargs: Mapping[str, Any], name: str) -> set[int]:
    value = _setting(model, kwargs, name)
    if value is None:
        return set()
    return {int(value)} if isinstance(value, int) else {int(one) for one in torch.as_tensor(value).flatten().tolist()}


def _setting(model: PreTrainedModel, kwargs: Mapping[str, Any], name: str) -> Any:
    if kwargs.get(name) is not None:
        return kwargs[name]
    value: Any = getattr(kwargs.get("generation_config"), name, None)
    return value if value is not None else getattr(model.generation_config, name, None)
