"""Finds the value that an edit needs at its subject's last token, and the key under which it is stored.

The search for the value is that of ROME (Meng et al. 2022, arXiv 2202.05262, eq. 4), which MEMIT and AlphaEdit share:
an offset to one hidden vector, the same behind several sampled prefixes, under which the base says the target, while
what it expects behind "{subject} is a" stays. It departs from the paper where a number would mean something else on
every base: the learning rate and the weight decay are in units of the vector's own size, as the clamp of the authors'
code is. Prefixes are sampled from the base itself, and the essence is read at the last token of its prompt (the
authors' code reads it at the subject's).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from wise.edits import Edit
from wise.errors import EditError, UnsupportedModelError
from wise.lab.editors.base import WeightEditor
from wise.lab.editors.context import ROWS, EditingContext, TokenRow, mean_loss
from wise.lab.editors.settings import Count, CountOrZero, Nonnegative, Positive, Settings
from wise.lab.editors.subject_spans import subject_spans
from wise.memory.modules import hooked
from wise.training.encoding import OPENINGS, Encoder
from wise.training.generation import right_pad, sample
from wise.training.splice import CACHED, SplicedModel

ESSENCE = "{} is a"
"""What the base expects behind this must stay."""


@dataclass(frozen=True, kw_only=True)
class ValueSettings(Settings):
    steps: Count = 25
    """Steps of Adam at most."""
    learning_rate: Positive = 0.3
    """Per step and coordinate, in units of the root mean square of the vector that is changed."""
    essence_weight: Nonnegative = 0.0625
    """Of the divergence, in nats, of what is expected behind "{subject} is a"."""
    weight_decay: Nonnegative = 0.002
    """Times the square of the offset's norm over the vector's own."""
    clamp: Positive = 1.5
    """The offset's norm at most, in norms of the vector itself."""
    enough: Nonnegative = 0.05
    """Objective, in nats, at which no more steps are made."""
    prefixes: CountOrZero = 5
    """Texts that the prompt is put behind, beside standing alone."""
    prefix_tokens: Count = 10


V = TypeVar("V", bound=ValueSettings)


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """One edit behind each prefix: the prompt alone comes first."""

    rows: tuple[TokenRow, ...]
    places: tuple[int, ...]
    """Of the subject's last token in each."""
    essence: tuple[list[int], int] | None
    """Ids of "{subject} is a" and the place of the subject; None where it does not fit the base's context."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """What `search` found, float32, in the order of the edits."""

    start: Tensor
    """`[edits, d]` the vector as it was, the prompt standing alone."""
    offset: Tensor
    """`[edits, d]` what must be added to it."""
    steps: list[int]


class SubjectEditor(WeightEditor[V]):
    """An editor that changes weights by the key and the value at an edit's subject."""

    needs_subject = True
    prefixes: tuple[str, ...] = ()

    def validate(self, edits: Sequence[Edit]) -> None:
        super().validate(edits)
        for edit in edits:
            subject_place(self.encoder, edit)

    def _prepare(self) -> None:
        self.prefixes = sampled_prefixes(self.context, self.settings)


def sampled_prefixes(context: EditingContext, settings: ValueSettings) -> tuple[str, ...]:
    """Short texts in the base's own words, the same for the same seed. The base must be in place."""
    if not settings.prefixes:
        return ()
    encoder = context.encoder
    openings = [text.split()[0] for text in OPENINGS]
    starts = [list(encoder.bos)] if encoder.bos else [encoder.prompt(text) for text in dict.fromkeys(openings)]
    rows = [starts[i % len(starts)] for i in range(settings.prefixes)]
    drawn = sample(context.model, rows, stops=encoder.stops, tokens=settings.prefix_tokens, seed=settings.seed)
    return tuple(encoder.text(row) for row in drawn)


def subject_place(encoder: Encoder, edit: Edit) -> int:
    """The subject's last token, where the prompt names it last. Raises EditError where no token holds it."""
    spans = subject_spans(encoder, edit.prompt, edit.subject or "")
    if not spans:
        raise EditError(
            f"field 'subject': no token of the prompt {edit.prompt!r} holds {edit.subject!r}; write the subject as the "
            f"prompt does, or leave the edit out (edit {edit.id!r})"
        )
    return spans[-1][1] - 1


def contexts_of(context: EditingContext, edit: Edit, prefixes: Sequence[str]) -> Contexts:
    """An edit behind each prefix, as far as it fits the base's context."""
    encoder = context.encoder
    rows, places = [context.row(edit)], [subject_place(encoder, edit)]
    behind = len(rows[0][0]) - places[0]
    for prefix in prefixes:
        text = f"{prefix}. {edit.prompt}"
        row = context.row(edit, text)
        spans = subject_spans(encoder, text, edit.subject or "")
        # otherwise the prefix names the subject as a word of its own and the prompt does not
        if len(row[0]) + len(row[1]) <= encoder.context and spans and len(row[0]) - spans[-1][1] + 1 == behind:
            rows.append(row)
            places.append(spans[-1][1] - 1)
    text = ESSENCE.format(edit.subject)
    ids, spans = encoder.prompt(text), subject_spans(encoder, text, edit.subject or "")
    essence = (ids, spans[0][1] - 1) if spans and len(ids) < encoder.context else None
    return Contexts(rows=tuple(rows), places=tuple(places), essence=essence)


@torch.no_grad()
def read(
    context: EditingContext, contexts: Sequence[Contexts], *, keys: Sequence[str] = (), out: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the model, as it now is, has at the subjects' last tokens, float32: path in `keys` -> `[edits, f]` what goes
    into that module, the mean over an edit's contexts; path in `out` -> `[edits, d]` what comes out of it, the prompt
    standing alone."""
    rows = [row[: place + 1] for c in contexts for (row, _), place in zip(c.rows, c.places, strict=True)]
    sizes = torch.tensor([len(c.rows) for c in contexts])
    owner = torch.repeat_interleave(torch.arange(len(contexts)), sizes).to(context.device)
    first = (sizes.cumsum(0) - sizes).to(context.device)
    results: dict[str, list[Tensor]] = {path: [] for path in (*keys, *out)}
    for begin in range(0, len(rows), ROWS):
        part = rows[begin : begin + ROWS]
        ids, mask = right_pad(part, device=context.device)
        places = torch.tensor([len(row) - 1 for row in part], device=context.device)
        activations: dict[str, Tensor] = {}

        def keep(path: str, value: Any, shape: Any = ids.shape, at: Tensor = places, into: Any = activations) -> None:
            into[path] = _rows(value, shape)[torch.arange(len(at), device=at.device), at].float()

        with (
            _hooked(context.model, keys, lambda path, args, _: keep(path, args[0])),
            _hooked(context.model, out, lambda path, _, value: keep(path, value)),
        ):
            context.model(ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
        for path, value in activations.items():
            results[path].append(value)
    whole = {path: torch.cat(parts) for path, parts in results.items()}
    means = {path: _means(whole[path], owner, len(contexts)) for path in keys}
    return means, {path: whole[path][first] for path in out}


def _rows(value: Any, shape: torch.Size) -> Tensor:
    """A module's input or output as `[batch, seq, n]`: some blocks give tuples, some layers are run flat."""
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor.reshape(*shape, tensor.shape[-1])


def _means(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """The mean of each owner's rows: `[rows, ...]` -> `[count, ...]`."""
    sums = values.new_zeros(count, *values.shape[1:]).index_add(0, owner, values)
    sizes = torch.bincount(owner, minlength=count).clamp(min=1).to(values.dtype)
    return sums / sizes.view(-1, *[1] * (values.ndim - 1))


def _hooked(
    model: nn.Module, paths: Sequence[str], hook: Callable[[str, Any, Any], Any]
) -> AbstractContextManager[None]:
    """`hook(path, arguments, output)` sees each module run, and may give another output."""
    return hooked((model.get_submodule(path), lambda _, *seen, path=path: hook(path, *seen)) for path in paths)


def search(
    context: EditingContext,
    contexts: Sequence[Contexts],
    layer: int,
    path: str,
    settings: ValueSettings,
    progress: Callable[[int], None] = lambda count: None,
) -> Values:
    """The offset to the output of the module at `path`, which block `layer` is or holds, at each subject's last token,
    that makes the target be said. Edits do not see each other: each has an offset and a stop of its own."""
    spliced = SplicedModel(context.model, context.projection(layer))
    if spliced.steps != CACHED:
        raise UnsupportedModelError(
            f"this {context.model.config.model_type} model keeps more than attention keys between tokens; this editor "
            "needs a base that keeps no more"
        )
    results: list[Values] = []
    size = max(1, ROWS // (settings.prefixes + 2))
    for begin in range(0, len(contexts), size):
        results.append(_Search(context, spliced, contexts[begin : begin + size], path, settings).run())
        progress(min(begin + size, len(contexts)))
    return Values(
        start=torch.cat([v.start for v in results]),
        offset=torch.cat([v.offset for v in results]),
        steps=[n for v in results for n in v.steps],
    )


class _Search:
    """Only what an offset can change is run: the blocks from its own up, from the subject's last token on."""

    def __init__(
        self,
        context: EditingContext,
        spliced: SplicedModel,
        contexts: Sequence[Contexts],
        path: str,
        settings: ValueSettings,
    ) -> None:
        self.spliced, self.path, self.settings = spliced, path, settings
        asks = [(*row, place) for c in contexts for row, place in zip(c.rows, c.places, strict=True)]
        essences = [(i, *c.essence) for i, c in enumerate(contexts) if c.essence is not None]
        owners = [i for i, c in enumerate(contexts) for _ in c.rows] + [i for i, _, _ in essences]
        self.owners = torch.tensor(owners, device=context.device)
        self.plain = torch.tensor([owners.index(i) for i in range(len(contexts))], device=context.device)
        self.targets = len(asks)
        """So many rows ask for a target; those behind them hold essences."""
        self.count = len(contexts)
        cut = [(ids[: place + 1], [*ids[place + 1 :], *target]) for ids, target, place in asks]
        cut += [(ids[: place + 1], [*ids[place + 1 :], 0]) for _, ids, place in essences]
        self.rows = spliced.cache(cut)
        asked = torch.zeros_like(self.rows.labels, dtype=torch.bool)
        for i, (ids, target, place) in enumerate(asks):
            begin = len(ids) - place - 1
            asked[i, begin : begin + len(target)] = True
        self.labels = self.rows.labels.masked_fill(~asked, -100)
        self.last = torch.tensor([len(after) - 1 for _, after in cut], device=context.device)

    def run(self) -> Values:
        settings = self.settings
        start, expected = self._before()
        norms = start.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        unit = norms / start.shape[-1] ** 0.5
        offset = torch.zeros_like(start).requires_grad_()  # in units
        optimizer = torch.optim.Adam([offset], lr=settings.learning_rate)
        active = torch.ones(self.count, dtype=torch.bool, device=start.device)
        steps = [0] * self.count
        limit = settings.clamp * start.shape[-1] ** 0.5
        for _ in range(settings.steps):
            loss = self._objective(offset * unit, norms, expected, active)
            active = active & (loss.detach() > settings.enough)
            if not bool(active.any()):
                break
            offset.grad = torch.autograd.grad(loss[active].sum(), offset)[0]
            best_offset = offset.detach().clone()
            optimizer.step()
            with torch.no_grad():
                new = offset * (limit / offset.norm(dim=-1, keepdim=True)).clamp(max=1.0)
                offset.copy_(torch.where(active[:, None], new, best_offset))
            steps = [n + int(on) for n, on in zip(steps, active.tolist(), strict=True)]
        return Values(start=start, offset=(offset * unit).detach(), steps=steps)

    @torch.no_grad()
    def _before(self) -> tuple[Tensor, Tensor]:
        """The vectors as they are, `[edits, d]`, and what is expected behind the essences, `[essences, vocabulary]`."""
        activations: list[Tensor] = []
        shape = self.rows.inputs.shape
        with _hooked(self.spliced.upper, [self.path], lambda _, args, out: activations.append(_rows(out, shape))):
            logits = self.spliced.logits(self.rows)
        everywhere = torch.ones_like(self.owners, dtype=torch.bool)
        return activations[0][self.plain, 0].float(), self._essence(logits, everywhere)

    def _objective(self, offset: Tensor, norms: Tensor, expected: Tensor, active: Tensor) -> Tensor:
        """Eq. 4 of ROME for each edit, in nats, `[edits]`; what it is for one that is not active has no meaning."""
        on = active[self.owners]
        owners, asks = self.owners[on], (torch.arange(len(on), device=on.device) < self.targets)[on]
        logits = self._logits(on, offset[owners])
        answer = _means(mean_loss(logits[asks], self.labels[on][asks]), owners[asks], self.count)
        now, before = self._essence(logits, on), expected[on[self.targets :]]
        drift = (now.exp() * (now - before)).sum(-1)
        drift = drift.new_zeros(self.count).index_add(0, owners[~asks], drift)
        decay = (offset / norms).pow(2).sum(-1)
        return answer + self.settings.essence_weight * drift + self.settings.weight_decay * decay

    def _essence(self, logits: Tensor, on: Tensor) -> Tensor:
        """Log-probabilities behind the essences among the rows that are `on`: `[essences, vocabulary]`."""
        last = self.last[self.targets :][on[self.targets :]]
        rows = torch.arange(len(logits) - len(last), len(logits), device=logits.device)
        return log_softmax(logits[rows, last].float(), dim=-1)

    def _logits(self, on: Tensor, added: Tensor) -> Tensor:
        """`[rows, places, vocabulary]` with `added`, `[rows, d]`, at the first place, where the subject ends."""
        rows = self.rows if bool(on.all()) else self.rows.select(on.nonzero()[:, 0])

        def put(_: str, __: Any, out: Any) -> Any:
            whole = _rows(out, rows.inputs.shape)
            moved = torch.cat([whole[:, :1] + added[:, None].to(whole.dtype), whole[:, 1:]], dim=1)
            return (moved, *out[1:]) if isinstance(out, tuple) else moved.reshape(out.shape)

        with _hooked(self.spliced.upper, [self.path], put):
            return self.spliced.logits(rows)
