"""Selects the prompts of a measurement and asks them in batches, of the edited model and of its base.

What a prompt gives does not depend on what is asked beside it. Generation pads on the left, as transformers does;
everything that only reads pads on the right, where no token of a causal model sees it, so that positions are those
of the row alone in every architecture. Rows of like length share a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from reprlib import repr as shortened
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wise.edits import Record
from wise.errors import ConfigError, EditError
from wise.lab.editors.base import Baseline, WholePrompts
from wise.memory.modules import execution_device
from wise.model import WiseModel
from wise.probes import Probe
from wise.progress import Progress, silent
from wise.router.chat_template import conversation_text
from wise.training.encoding import Encoder
from wise.training.generation import greedy, right_pad

T = TypeVar("T")
FINAL_PUNCTUATION = ".,;:!?"
BATCH = 32
TOKENS_AT_ONCE = 4096
"""Tokens whose logits are held at once; one row at the least."""
MAX_PROMPTS = 4
"""Paraphrases, and neighbours, of one record that are asked: the first ones."""


EditedModel = WiseModel | Baseline[Any]
"""What is measured: a model that was edited, by a side memory or by an editor of the literature, its base inside it."""


@dataclass(frozen=True, kw_only=True)
class PromptOutcome:
    record: str
    measure: str
    """One of `wise.lab.eval.quality.MEASURES`, or the kind of a probe."""
    prompt: str
    """All wordings of a probe, one a line."""
    expected: str
    """The target; for locality what the base answers; for a probe its first answer, one a line and wording."""
    answer: str
    generated: float
    """1 where the answer is right, else 0. Right is: it stops by itself and is the target but for white space
    around it and punctuation at its end; for locality: token for token what the base generates; for a probe: see
    `wise.lab.eval.probing`."""
    teacher_forced: float
    """Share of places in the expected answer, those before it fed in, whose argmax is right: is the target's
    token, what ends the target left out; for locality: is what the base's argmax is there."""


@dataclass(frozen=True, kw_only=True)
class TestedRecord:
    """A record and those of its prompts that are asked."""

    record: Record
    paraphrases: tuple[str, ...]
    free_paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]
    probes: tuple[Probe, ...]
    """Also those of earlier records that ask for the same edit: two questions of several hops may share one."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    tested: tuple[TestedRecord, ...]
    fitted: frozenset[str]
    """Prompts that fitting used or may have used."""
    edited: frozenset[str]
    """Prompts that ask for an edited fact."""


def select(model: EditedModel, records: Sequence[Record]) -> Selection:
    """What is asked of `records`: no paraphrase that fitting used, no neighbour that asks for an edited fact; edits
    that are live or measured count. Where two records share a prompt the later edit is the wanted one, and only it is
    measured."""
    edits = [*model.edits, *(record.edit for record in records)]
    edit_prompts = {prompt for edit in edits for prompt in (edit.prompt, *edit.paraphrases)}
    fitted = edit_prompts | {prompt for edit in edits for prompt in edit.locality}
    edited = edit_prompts | {p for record in records for p in (*record.paraphrases, *record.free_paraphrases)}

    def without(prompts: Sequence[str], left_out: set[str]) -> tuple[str, ...]:
        return tuple([p for p in prompts if p not in left_out][:MAX_PROMPTS])

    probes: dict[tuple[str, str], tuple[Probe, ...]] = defaultdict(tuple)
    for record in records:
        probes[record.edit.prompt, record.edit.target] += record.probes
    return Selection(
        tested=tuple(
            TestedRecord(
                record=record,
                probes=probes[record.edit.prompt, record.edit.target],
                paraphrases=without(record.paraphrases, fitted),
                free_paraphrases=without(record.free_paraphrases, fitted),
                neighbours=without(record.neighbours, edited),
            )
            for record in {record.edit.prompt: record for record in records}.values()
        ),
        fitted=frozenset(fitted),
        edited=frozenset(edited),
    )


def apart(records: Iterable[Record], measured: Iterable[Record]) -> list[Record]:
    """Those of `records` that ask in no wording what one of `measured` asks: what an editor may learn from, or be
    searched on, when these are measured."""

    def asked(record: Record) -> set[str]:
        edit = record.edit
        return {edit.prompt, *edit.paraphrases, *record.paraphrases, *record.free_paraphrases}

    used = {text for record in measured for text in asked(record)}
    return [record for record in records if not used & asked(record)]


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A prompt and what is read in after it."""

    prompt: list[int]
    fed: list[int]

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.fed]


class Prompter:
    """Asks the edited model, or its base.

    Each method takes the name of what is asked, which goes to `progress`, and whether the base is to answer.
    """

    def __init__(self, model: EditedModel, progress: Progress = silent) -> None:
        self.model = model
        self.progress = progress

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder

    def answers(
        self, name: str, prompts: Sequence[Sequence[int]], limits: Sequence[int], *, base: bool = False
    ) -> list[list[int]]:
        """The greedy answer to each prompt, of at most so many tokens, up to and including its stop."""
        rows = list(zip(prompts, limits, strict=True))

        def compute(model: PreTrainedModel, part: Sequence[tuple[Sequence[int], int]]) -> list[list[int]]:
            prompts, limits = zip(*part, strict=True)
            contexts = self.with_context(prompts, base=base)
            return greedy(model, contexts, stops=self.encoder.stops, max_new_tokens=limits)

        return self.mapped(f"{name}.answers", rows, compute, lambda row: (row[1], len(row[0])), base=base)

    def best(self, name: str, rows: Sequence[PromptRow], *, base: bool = False) -> list[list[int]]:
        """The argmax at the place of every fed token. Raises ConfigError for logits that are NaN."""

        def compute(model: PreTrainedModel, part: Sequence[PromptRow]) -> list[list[int]]:
            return [places.argmax(-1).tolist() for places in self._read(model, part, base=base)]

        return self.mapped(f"{name}.best", rows, compute, _size, base=base, batch=rows_at_once(rows))

    def log_probs(self, name: str, rows: Sequence[PromptRow], *, base: bool) -> list[float]:
        """The mean log-probability, in nats, of each row's fed tokens. Raises ConfigError for logits that are NaN."""

        def compute(model: PreTrainedModel, part: Sequence[PromptRow]) -> list[float]:
            return [
                float(token_log_probs(places, row.fed).mean())
                for places, row in zip(self._read(model, part, base=base), part, strict=True)
            ]

        return self.mapped(f"{name}.log_probs", rows, compute, _size, base=base, batch=rows_at_once(rows))

    def with_context(self, prompts: Sequence[Sequence[int]], *, base: bool) -> list[list[int]]:
        """What is read in the place of each prompt: the prompt itself, but for editors that put something before it."""
        return self._whole(base).with_context(prompts)

    def _whole(self, base: bool) -> WholePrompts:
        return self.model if isinstance(self.model, WholePrompts) and not base else WholePrompts()

    def _read(self, model: PreTrainedModel, part: Sequence[PromptRow], *, base: bool) -> list[Tensor]:
        """`logits` of rows. An editor that looks at whole prompts gets to know where each prompt ends."""
        whole = self._whole(base)
        contexts = whole.with_context([row.prompt for row in part])
        rows = [PromptRow(prompt=prompt, fed=row.fed) for prompt, row in zip(contexts, part, strict=True)]
        with whole.reading([len(row.prompt) for row in rows]):
            return logits(model, rows)

    def mapped(
        self,
        name: str,
        items: Sequence[T],
        compute: Callable[[PreTrainedModel, Sequence[T]], list[Any]],
        length: Callable[[T], Any],
        *,
        base: bool,
        batch: int = BATCH,
    ) -> list[Any]:
        """What `compute` gives for each item, `batch` of like length at a time; in the order of `items`."""
        order = sorted(range(len(items)), key=lambda i: length(items[i]))
        values: dict[int, Any] = {}
        with self.model.disabled() if base else nullcontext(self.model.model) as model:
            for start in range(0, len(items), batch):
                part = order[start : start + batch]
                values |= zip(part, compute(model, [items[i] for i in part]), strict=True)
                self.progress(f"{name}.{'base' if base else 'edited'}", len(values), len(items))
        return [values[i] for i in range(len(items))]

    def room(self, record: Record, what: str, prompt: str, ids: Sequence[int], least: int) -> int:
        """Tokens that the context leaves behind a prompt.

        Raises EditError, naming the record, where those are fewer than `least`, or the prompt has no token.
        """
        where = f"{record.source or record.edit.id}: the prompt {shortened(prompt)} ({what})"
        if not ids:
            raise EditError(f"{where} has no token in this model's vocabulary; leave it out")
        room = self.encoder.context - len(ids)
        if room < least:
            raise EditError(
                f"{where} takes {len(ids)} tokens, which leaves {room} of the context for an answer of {least}; "
                "shorten it or leave it out"
            )
        return room


def _size(row: PromptRow) -> tuple[int, int]:
    return len(row.ids), len(row.prompt)


def rows_at_once(rows: Sequence[PromptRow]) -> int:
    """Rows that are read at once: a vocabulary is large, so long rows are read fewer at a time."""
    return max(1, min(BATCH, TOKENS_AT_ONCE // max((len(row.ids) for row in rows), default=1)))


@torch.no_grad()
def logits(model: PreTrainedModel, rows: Sequence[PromptRow]) -> list[Tensor]:
    """Logits `[fed, vocabulary]` at the places that each row's fed tokens are predicted from.

    Raises ConfigError where one is NaN, which no comparison would notice.
    """
    ids, mask = right_pad([row.ids for row in rows], device=execution_device(model))
    begin = min(len(row.prompt) for row in rows) - 1  # logits before it are of no use, and a vocabulary is large
    out = model(ids, attention_mask=mask, use_cache=False, logits_to_keep=ids.shape[1] - begin).logits
    starts = [len(row.prompt) - 1 - begin for row in rows]
    places = [out[i, at : at + len(row.fed)].float() for i, (at, row) in enumerate(zip(starts, rows, strict=True))]
    for each in places:
        check_logits(each)
    return places


def turn_text(encoder: Encoder, messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation in the base's chat template, up to where the answer begins: the text that `encoder.prompt` reads
    as the ids of `encoder.turn(messages)`."""
    text, ids = conversation_text(encoder.tokenizer, messages), encoder.turn(messages)
    # A template often writes the beginning of sequence that the encoder puts there as well.
    bare = text.removeprefix(encoder.tokenizer.bos_token or "")
    return next((each for each in (text, bare, bare.lstrip()) if encoder.prompt(each) == ids), bare)


def check_logits(values: Tensor) -> None:
    """`[..., vocabulary]`. Raises ConfigError where logits are NaN, or infinite so that no probability follows."""
    if not bool(values.amax(-1).isfinite().all()):
        raise ConfigError(
            "the model gives NaN or infinity for the logits of a prompt, so there is nothing to measure: load it in "
            "float32 or bfloat16, and look at its weights"
        )


def token_log_probs(places: Tensor, tokens: Sequence[int]) -> Tensor:
    """Log-probability `[n]` of each of `n` tokens by the logits `[n, vocabulary]`; finite, also at probability 0."""
    chosen = torch.tensor(list(tokens), device=places.device).unsqueeze(-1)
    result = places.log_softmax(-1).gather(-1, chosen).squeeze(-1)
    return result.clamp(min=torch.finfo(torch.float32).min / (1 + len(tokens)))


def plain(answer: str) -> str:
    """An answer without what does not count: white space around it and punctuation at its end."""
    return answer.strip().rstrip(FINAL_PUNCTUATION).rstrip()


def share(best: Sequence[int], target: Sequence[int]) -> float:
    return fmean(float(a == b) for a, b in zip(best, target, strict=True))


def mean_over_records(values: Iterable[tuple[str, float]]) -> float | None:
    """The mean over records of the mean over a record's values; None without any."""
    of_record: dict[str, list[float]] = defaultdict(list)
    for record, value in values:
        of_record[record].append(value)
    return fmean(map(fmean, of_record.values())) if of_record else None
