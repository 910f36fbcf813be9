"""What editors with a hypernetwork share. It is trained once per base, and turns an edit's gradient into an update.

Gradients come, and updates go, as factors (`wise.lab.editors.factors`): in training every edit of a batch has
its own edited base, and `W + Delta` is written out only where an edit is served.
"""

from __future__ import annotations

import logging
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from wise.edits import Edit, Record
from wise.errors import ConfigError, EditError
from wise.lab.editors.base import WeightEditor
from wise.lab.editors.context import EditingContext, TokenRow, as_weight, mean_loss, padded_rows
from wise.lab.editors.factors import (
    Factors,
    dense_matrix,
    divergence,
    edited_linears,
    logits,
    weight_gradients,
    with_update,
)
from wise.lab.editors.settings import Bounds, Count, Positive, Settings
from wise.memory.artifact import digest_of_json
from wise.training.generation import greedy

logger = logging.getLogger(__name__)

ANSWER_TOKENS = 8
"""Of the base's own answers, which unrelated prompts are to keep."""
UNRELATED = 2
"""Unrelated prompts kept of a record."""
CHECK = 20
"""Training steps between two validations."""
LEAST = 3
"""Training records at least: one is held out, and each of the others may need the prompt of another one."""
CLIP = 1.0
"""Norm to which the hypernetwork's gradient is cut."""
CHUNK = 16
"""Edits whose gradients are taken in one pass."""


@dataclass(frozen=True, kw_only=True)
class HyperSettings(Settings):
    """Of an editor whose hypernetwork is trained on `EditingContext.training`."""

    blocks: Count = 3
    """The last blocks are edited; of a base that has fewer, all."""
    whole_ffn: bool = True
    """Every projection of their feed-forward layers is edited; False edits the value projections alone."""
    steps: Count = 240
    batch: Count = 8
    """Training edits in a step, each on a base of its own."""
    learning_rate: Positive = 1e-3
    """Of Adam, for the hypernetwork."""
    held_out: Annotated[float, Bounds(high=0.5, open_low=True)] = 0.1
    """Share of the training records that is validated on; the weights that did best there are kept."""
    patience: Count = 6
    """Validations without a better one after which training stops."""


H = TypeVar("H", bound=HyperSettings)


@dataclass(frozen=True, kw_only=True)
class EditQuery:
    row: TokenRow
    """The prompt, and the target as the base would end it."""
    old: list[int]
    """What the model says so far; the token that stopped it included."""


@dataclass(frozen=True, kw_only=True)
class Example:
    query: EditQuery
    wordings: tuple[TokenRow, ...]
    """The target behind the edit's own prompt, and behind its paraphrases."""
    unrelated: tuple[TokenRow, ...]
    """Prompts that must not move, with the base's own answers; of a record that names none, empty."""


Sample = tuple[EditQuery, TokenRow, TokenRow]
"""An edit, an equivalent wording, an unrelated prompt."""


class HyperEditor(WeightEditor[H]):
    """Trains a hypernetwork, keeps it, and adds to the weights what it makes of an edit's gradient."""

    kind: ClassVar[str]
    """Name of the editor in files."""
    reads_old: ClassVar[bool] = False
    """Whether the hypernetwork reads what the model says so far."""

    def __init__(self, context: EditingContext, settings: H) -> None:
        self.linears: dict[str, nn.Module] = edited_linears(context, settings.blocks, settings.whole_ffn)
        super().__init__(context, settings, [f"{path}.weight" for path in self.linears])
        self.network: Any = None
        """The hypernetwork, a float32 module; None until `prepare`."""

    @abstractmethod
    def _build(self) -> nn.Module:
        """An untrained hypernetwork; torch's random numbers are seeded when this is called."""

    @abstractmethod
    def _update(self, queries: Sequence[EditQuery], gradients: Factors, mask: Tensor) -> Factors:
        """What to add to the weights for each edit, differentiable in the hypernetwork's parameters.

        gradients: of the edits' losses. mask: `[edits, n]`, 0 at pads.
        """

    @abstractmethod
    def _objective(self, edit: Any, locality: Any) -> Any:
        """What training minimises, of the mean loss on equivalent wordings and the mean KL on unrelated prompts."""

    def merit(self, edit: float, locality: float) -> float:
        """What the best weights have the least of on held-out records."""
        return float(self._objective(edit, locality))

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters with their learning rates, as Adam takes them."""
        return [{"params": list(self.network.parameters()), "lr": self.settings.learning_rate}]

    def _begin(self, examples: Sequence[Example]) -> None:
        """Before the first step, with the examples that are trained on."""

    def _stepped(self, locality: float) -> None:
        """After a step, with the mean KL that it saw."""

    def _prepare(self) -> None:
        self.network = self.untrained()
        self.network.load_state_dict(self.context.cached(self.kind, self._key(), self._trained))
        self.network.requires_grad_(False)

    def untrained(self) -> nn.Module:
        """A hypernetwork as training begins with it. The global random state is left as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return self._build().to(self.context.device)

    def _key(self) -> dict[str, Any]:
        """The settings, how texts are encoded, and a digest of the records: what the trained weights depend on."""
        return {
            "settings": self.settings.to_dict(),
            "ends": [list(self.encoder.bos), list(self.encoder.terminator)],
            "records": digest_of_json([record.to_dict() for record in self.context.training]),
        }

    def _trained(self) -> dict[str, Tensor]:
        """Trains, and returns the weights that did best on held-out records."""
        examples, order = self.examples(), random.Random(self.settings.seed)
        order.shuffle(examples)
        count = max(1, int(self.settings.held_out * len(examples)))
        validation, rest = examples[:count], examples[count:]
        checked = [self._sample(examples, [example], order) for example in validation for _ in range(2)]
        self._begin(rest)
        optimizer = torch.optim.Adam(self._groups())
        best, least, since = self._state(), self.merit(*self.measured(checked)), 0
        for step in range(1, self.settings.steps + 1):
            self._step(optimizer, [self._sample(rest, rest, order) for _ in range(self.settings.batch)])
            self.context.progress(f"{self.kind}: hypernetwork", step, self.settings.steps)
            if step % CHECK and step < self.settings.steps:
                continue
            edit, locality = self.measured(checked)
            merit = self.merit(edit, locality)
            logger.info("%s: step %d: held-out loss %.3f, KL %.4f", self.kind, step, edit, locality)
            since += 1
            if merit < least:
                best, least, since = self._state(), merit, 0
            if since == self.settings.patience:
                break
        return best

    def _state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def _step(self, optimizer: torch.optim.Optimizer, samples: Sequence[Sample]) -> None:
        edit, locality = (each.mean() for each in self.losses(samples))
        parameters = list(self.network.parameters())
        gradients = torch.autograd.grad(self._objective(edit, locality), parameters)  # the base's own stay as they are
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        self._stepped(float(locality.detach()))

    @torch.no_grad()
    def measured(self, samples: Sequence[Sample]) -> tuple[float, float]:
        """Means, in nats per token: the loss on the equivalent wordings, and the KL on the unrelated prompts."""
        parts = [self.losses(samples[i : i + CHUNK]) for i in range(0, len(samples), CHUNK)]
        edit, locality = (torch.cat(losses).mean() for losses in zip(*parts, strict=True))
        return float(edit), float(locality)

    def losses(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Of each sample, edited alone: the loss on the wording, and the KL of the edited model from the base on the
        unrelated prompt. Each `[samples]`."""
        queries, wordings, unrelated = zip(*samples, strict=True)
        update = self.update(queries)
        ids, mask, labels = padded_rows(wordings, self.context.device)
        with with_update(self.linears, update):
            edit = mean_loss(logits(self.model, ids, mask), labels)
        ids, mask, labels = padded_rows(unrelated, self.context.device)
        with torch.no_grad():
            base = logits(self.model, ids, mask)
        with with_update(self.linears, update):
            edited = logits(self.model, ids, mask)
        return edit, divergence(base, edited, labels)

    def update(self, queries: Sequence[EditQuery]) -> Factors:
        """What the hypernetwork adds to the weights as they now are, for each edit."""
        return self._update(queries, *self.gradients(queries))

    def gradients(self, queries: Sequence[EditQuery]) -> tuple[Factors, Tensor]:
        """Of each edit's loss at the weights as they now are, and `[edits, n]` 0 at pads."""
        return weight_gradients(self.model, self.linears, [edit.row for edit in queries], self.context.device)

    def _sample(self, others: Sequence[Example], among: Sequence[Example], order: random.Random) -> Sample:
        """The edit's own wording counts as much as all its paraphrases together."""
        example = order.choice(among)
        first, *paraphrases = example.wordings
        wording = order.choice(paraphrases) if paraphrases and order.random() < 0.5 else first
        unrelated = example.unrelated
        while not unrelated:
            other = order.choice(others)
            unrelated = (other.unrelated or ((other.query.row[0], other.query.old),)) if other is not example else ()
        return example.query, wording, order.choice(unrelated)

    def examples(self) -> list[Example]:
        """The training records that the base can read, with what it says to their prompts."""
        order = random.Random(self.settings.seed)
        pairs = [(record, rows) for record in self.context.training if (rows := self._wordings(record))]
        if len(pairs) < LEAST:
            raise ConfigError(
                f"{self.kind} must train a hypernetwork first, and the base can read {len(pairs)} of "
                f"{len(self.context.training)} training records: give at least {LEAST} (some hundred are wanted) that "
                "are not edited"
            )
        beside = [order.sample(r.neighbours, min(UNRELATED, len(r.neighbours))) for r, _ in pairs]
        texts = list(dict.fromkeys([*(r.edit.prompt for r, _ in pairs), *(text for near in beside for text in near)]))
        answers = dict(zip(texts, self._generate([self.encoder.prompt(text) for text in texts]), strict=True))
        return [
            Example(
                query=EditQuery(row=rows[0], old=answers[record.edit.prompt]),
                wordings=rows,
                unrelated=tuple((self.encoder.prompt(text), answers[text]) for text in near),
            )
            for (record, rows), near in zip(pairs, beside, strict=True)
        ]

    def _wordings(self, record: Record) -> tuple[TokenRow, ...]:
        """The record's target behind each of its wordings, its own prompt first; empty where the base cannot read them
        all, or say the target, within its context."""
        edit = record.edit
        try:
            self.encoder.check(edit)
        except EditError:
            return ()
        rows = tuple(self.context.row(edit, text) for text in (edit.prompt, *edit.paraphrases, *record.paraphrases))
        fits = max(len(prompt) + len(target) for prompt, target in rows) <= self.encoder.context
        return rows if fits else ()

    def _generate(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """What the model, as it now is, says to prompts; the token that stopped it included."""
        return greedy(self.model, prompts, stops=self.encoder.stops, max_new_tokens=ANSWER_TOKENS)

    def queries(self, edits: Sequence[Edit]) -> list[EditQuery]:
        """Edits as the hypernetwork reads them, with what the model says so far where it reads that."""
        rows = [self.context.row(edit) for edit in edits]
        answer = self._generate([prompt for prompt, _ in rows]) if self.reads_old else [[] for _ in rows]
        return [EditQuery(row=row, old=old) for row, old in zip(rows, answer, strict=True)]

    @torch.no_grad()
    def _write(self, edits: Sequence[Edit], progress: Callable[[int], None]) -> None:
        """Adds the updates of all edits, each made at the weights as they now are."""
        total = {path: torch.zeros((), device=self.context.device) for path in self.linears}
        for start in range(0, len(edits), CHUNK):
            part = edits[start : start + CHUNK]
            for path, factors in self.update(self.queries(part)).items():
                total[path] = total[path] + dense_matrix(*factors)
            progress(start + len(part))
        changed = {}
        for path, module in self.linears.items():
            weight = self.weights[f"{path}.weight"]
            changed[f"{path}.weight"] = weight.float() + as_weight(module, total[path]).to(weight.device)
        self.put(changed)
