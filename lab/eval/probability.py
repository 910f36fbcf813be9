"""CounterFact's own figures: the probability of the new answer compared with the true one.

As in ROME (Meng et al. 2022, section 3.4, and its `eval_utils_counterfact.py`): P of an answer is the exponential
of the mean log-probability of its tokens after the prompt. Score is how often the wanted one of the two is the
likelier (a tie is no success), magnitude by how much in P. On the edit's prompt (efficacy) and on paraphrases the
new answer is wanted; on neighbours the true one, and only those are asked whose answer is known to be that one (at
most the first four of a record, where ROME asks all). No text is generated: a model can score high and say something
else. Any record that knows its old answer is asked, of whichever set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wise.edits import Record
from wise.errors import EditError
from wise.lab.eval.prompting import Prompter, PromptRow, TestedRecord, mean_over_records

MEASURES = ("efficacy", "paraphrase", "neighbourhood")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One prompt with the two answers that are compared."""

    record: str
    measure: str
    """One of `MEASURES`."""
    new: PromptRow
    true: PromptRow


def pairs(prompter: Prompter, tested: Sequence[TestedRecord]) -> list[Pair]:
    """What is compared: the records that know the answer that was right before.

    Raises EditError for a prompt that does not fit the context with one of its answers, and for an answer that the
    model has no token for.
    """
    results = []
    for each in tested:
        record = each.record
        if record.answer is None or record.answer == record.edit.target:
            continue
        prompts = {
            "efficacy": (record.edit.prompt,),
            "paraphrase": each.paraphrases,
            "neighbourhood": [p for p in each.neighbours if _shares_answer(record, p)],
        }
        results += [_pair(prompter, record, name, prompt) for name, several in prompts.items() for prompt in several]
    return results


def measure_probability(prompter: Prompter, compared: Sequence[Pair]) -> dict[str, Any] | None:
    """Measure -> score and magnitude, means over records of means over a record's prompts, and how many prompts;
    under `base` the same of the unedited model. None where nothing is compared.

    Raises ConfigError where the model gives NaN.
    """
    if not compared:
        return None
    return _figures(prompter, compared, base=False) | {"base": _figures(prompter, compared, base=True)}


def _shares_answer(record: Record, neighbour: str) -> bool:
    """Whether a probe says so: the neighbours of many sets are questions with answers of their own."""
    return any(
        query.prompt == neighbour and record.answer in query.answers
        for probe in record.probes
        for query in probe.queries
    )


def _pair(prompter: Prompter, record: Record, measure: str, prompt: str) -> Pair:
    encoder = prompter.encoder
    ids = encoder.prompt(prompt)
    answers = [encoder.answer_ids(prompt, answer) for answer in (record.edit.target, record.answer or "")]
    unknown = encoder.tokenizer.unk_token_id
    if any(not answer or (unknown not in encoder.stops and unknown in answer) for answer in answers):
        raise EditError(
            f"{record.source or record.edit.id}: the new or the old answer, {record.edit.target!r} or "
            f"{record.answer!r}, is not in this model's vocabulary; leave the record out"
        )
    prompter.room(record, measure, prompt, ids, max(map(len, answers)))
    new, true = (PromptRow(prompt=ids, fed=answer) for answer in answers)
    return Pair(record=record.edit.id, measure=measure, new=new, true=true)


def _figures(prompter: Prompter, compared: Sequence[Pair], *, base: bool) -> dict[str, Any]:
    rows = [row for pair in compared for row in (pair.new, pair.true)]
    result = prompter.log_probs("counterfact", rows, base=base)
    figures: dict[str, Any] = {}
    for measure in MEASURES:
        scores, magnitudes = [], []
        for pair, new, true in zip(compared, result[::2], result[1::2], strict=True):
            if pair.measure != measure:
                continue
            expected, other = (true, new) if measure == "neighbourhood" else (new, true)
            scores.append((pair.record, float(expected > other)))
            magnitudes.append((pair.record, math.exp(expected) - math.exp(other)))
        figures[measure] = {
            "score": mean_over_records(scores),
            "magnitude": mean_over_records(magnitudes),
            "n": len(scores),
        }
    return figures
