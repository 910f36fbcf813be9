"""`wise demo`: wraps the shipped model, applies counterfactual edits one by one, and measures the result."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wise.config import WiseConfig
from wise.demo.facts import load_facts, train_prompts
from wise.demo.records import demo_records
from wise.edits import Record
from wise.lab.eval.quality import measure_quality
from wise.lab.eval.roc import auroc
from wise.lab.eval.routing.scores import gate_ratios
from wise.lab.eval.run import Evaluation
from wise.loading import Placement, load_model
from wise.model import wrap
from wise.progress import Progress

SHOWN = 5
RECALL_FACTS = 500
"""Facts that the base is asked for, to see that it knows what is about to be changed."""


@dataclass(frozen=True, kw_only=True)
class ShownPrompt:
    """A prompt and its answers before and after the edits."""

    kind: str
    prompt: str
    before: str
    after: str
    wanted: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DemoResult:
    evaluation: Evaluation
    base_recall: float
    """Share of the facts that the unedited model answers, by itself and to its own stop."""
    ratios: dict[str, Tensor]
    """Score over threshold at the last token of the edits' prompts, of their paraphrases, and of neighbours."""
    shown: tuple[ShownPrompt, ...]
    seconds: float

    @property
    def auroc(self) -> float:
        """How well the router tells unseen paraphrases of the edits from their neighbours."""
        return auroc(self.ratios["paraphrases"], self.ratios["neighbours"])

    def to_dict(self) -> dict[str, Any]:
        return self.evaluation.to_dict() | {
            "base_recall": self.base_recall,
            "routing": {"auroc": self.auroc},
            "seconds": self.seconds,
        }


def run_demo(
    *,
    edits: int,
    seed: int,
    mode: str,
    placement: Placement,
    progress: Progress,
) -> DemoResult:
    """Edits the shipped model with `edits` counterfactuals and measures it. Raises ConfigError for a mode or a device
    that there is not, or more edits than the model knows facts."""
    start = time.perf_counter()
    records = demo_records(edits, seed=seed)
    model = wrap(*load_model(None, placement=placement), WiseConfig(mode=mode, seed=seed))
    facts = random.Random(seed).sample(load_facts("train"), RECALL_FACTS)
    recalled = model.ask([train_prompts(fact)[0] for fact in facts])
    recall = sum(answer.text == fact.object for answer, fact in zip(recalled, facts, strict=True)) / len(facts)
    shown_prompts = _shown_prompts(records)
    before = [answer.text for answer in model.ask([prompt for _, prompt, _ in shown_prompts])]
    report = model.edit(
        [record.edit for record in records], progress=lambda done: progress("edits", done, len(records))
    )
    after = [answer.text for answer in model.ask([prompt for _, prompt, _ in shown_prompts])]
    evaluation = Evaluation(
        editor=f"wise-{mode}",
        edits=len(records),
        quality=measure_quality(model, records, progress=progress),
        failed=report.failed,
        seconds=report.seconds,
        cpu_seconds=report.cpu_seconds,
        stored_bytes=model.memory_bytes,
    )
    prompts = {
        "edits": [record.edit.prompt for record in records],
        "paraphrases": [p for record in records for p in record.paraphrases],
        "neighbours": [p for record in records for p in record.neighbours],
    }
    return DemoResult(
        evaluation=evaluation,
        base_recall=recall,
        ratios={kind: gate_ratios(model, texts) for kind, texts in prompts.items()},
        shown=tuple(
            ShownPrompt(kind=kind, prompt=prompt, before=b, after=a, wanted=target or b)
            for (kind, prompt, target), b, a in zip(shown_prompts, before, after, strict=True)
        ),
        seconds=time.perf_counter() - start,
    )


def _shown_prompts(records: list[Record]) -> list[tuple[str, str, str | None]]:
    """(what it is, prompt, the answer wanted or None for the base's own)."""
    rows: list[tuple[str, str, str | None]] = []
    for record in records[:SHOWN]:
        rows.append(("edit", record.edit.prompt, record.edit.target))
        rows.append(("paraphrase", record.paraphrases[-1], record.edit.target))
        rows += [("neighbour", prompt, None) for prompt in record.neighbours[:1]]
    return rows
