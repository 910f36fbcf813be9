"""A run as the command writes it, with figures drawn by chance and prompts made up here."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

CLASSES = {
    "generic": (200, "prompt", 0.25, 0.15),
    "same_relation": (400, "prompt", 0.72, 0.16),
    "same_subject": (320, "prompt", 0.95, 0.22),
    "near_duplicate": (240, "prompt", 0.88, 0.2),
    "running_text": (20000, "token", 0.2, 0.17),
    "long_context": (4000, "token", 0.25, 0.19),
    "chat": (120, "prompt", 0.4, 0.2),
    "multi_turn": (90, "prompt", 0.5, 0.22),
}
POSITIVES = {
    "edits": (100, 1.45, 0.12),
    "paraphrases": (200, 1.2, 0.24),
    "free_paraphrases": (180, 0.9, 0.3),
    "prefixed": (100, 1.3, 0.2),
    "chat": (100, 1.05, 0.3),
}
BINS = [round(0.05 * i, 2) for i in range(41)]
TOWNS = ("Vellmar", "Oskaria", "Tintage Bay", "Port Amrel", "Nyhaven", "Quillon")
PEOPLE = ("Ada Brenn", "Tomas Okeru", "Lise Vantor", "Iri Halloway", "Pell Anders", "Mara Quist")


def sample_run(*, edits: int = 100, seed: int = 0) -> dict[str, Any]:
    """A whole run: nothing is null, and some figures are bad."""
    rng = random.Random(seed)
    run: dict[str, Any] = {
        "schema": 1,
        "editor": "wise-retrieve",
        "edits": edits,
        "seed": seed,
        "generated": {
            "reliability": 0.97,
            "generalization": 0.715,
            "free_generalization": 0.24,
            "locality": 0.938125,
        },
        "teacher_forced": {
            "reliability": 0.9921,
            "generalization": 0.8642,
            "free_generalization": 0.5511,
            "locality": 0.9712,
        },
        "counts": {
            "reliability": edits,
            "generalization": 2 * edits,
            "free_generalization": 180,
            "locality": 4 * edits,
        },
        "locality": {
            "unchanged": 0.938125,
            "unchanged_teacher_forced": 0.9712,
            "gold_generated": 0.8125,
            "gold_teacher_forced": 0.9011,
            "neighbourhood_score": 0.8831,
        },
        "counterfact": _counterfact(edits),
        "probes": {
            "portability.reasoning": _probe(0.093, 0.081, 0.31, 86, 14),
            "portability.subject_aliasing": _probe(0.412, 0.02, 0.66, 51, 0),
            "ripple.logical_generalization": _probe(0.051, 0.049, 0.22, 78, 31),
            "ripple.preservation": _probe(0.871, 0.93, 0.94, 140, 22),
            "multi_hop": _probe(0.062, 0.058, 0.28, 97, 0),
            "locality.gold": _probe(0.8125, 0.86, 0.9011, 160, 0),
        },
        "instances": {"edit_wise": 0.95, "instance_wise": 0.88, "n": 25},
        "fluency": {
            "entropy": 6.0123,
            "base_entropy": 6.1042,
            "consistency": 0.2213,
            "base_consistency": 0.1911,
            "n": 100,
        },
        "perplexity": {
            "base": 14.22,
            "edited": 14.31,
            "ratio": 14.31 / 14.22,
            "tokens": 20000,
            "argmax_changed": 0.00315,
        },
        "outcomes": _outcomes(rng, edits),
        "routing": _routing(rng),
        "retention": [
            {
                "edits": stop,
                "reliability": 1 - 0.0003 * stop,
                "oldest": 1 - 0.0011 * stop,
                "teacher_forced": 1 - 0.0001 * stop,
            }
            for stop in (1, 2, 5, 10, 20, 50, 100)
        ],
        "failed_edits": 3,
        "failed": ["made-17", "made-40", "made-71"],
        "cpu_seconds_per_edit": 0.2134,
        "seconds_per_edit": 0.2291,
        "timing": {"editing_seconds": 22.91, "measuring_seconds": 310.4, "started": "2031-05-04 09:12 UTC"},
        "data": {"name": "made_up.jsonl", "sha256": "5e" * 32, "format": "counterfact", "skip": 0},
        "model": {
            "name": "tinylm",
            "type": "llama",
            "layer": 5,
            "parameters": 6900000,
            "fingerprint": "ab" * 16,
        },
        "config": {"mode": "retrieve", "layer": 5, "key_threshold": 0.7, "terminator": None},
        "environment": {
            "wise": "0.1.0",
            "python": "3.12.1",
            "torch": "2.13",
            "cpu": "Example CPU 9000",
            "threads": 2,
            "device": "cpu",
        },
    }
    return run


def _counterfact(n: int) -> dict[str, Any]:
    after = {"efficacy": (0.99, 0.7142), "paraphrase": (0.84, 0.3321), "neighbourhood": (0.8831, 0.1022)}
    before = {"efficacy": (0.11, -0.1304), "paraphrase": (0.13, -0.1141), "neighbourhood": (0.8902, 0.1201)}

    def figures(given: dict[str, tuple[float, float]]) -> dict[str, Any]:
        return {name: {"score": s, "magnitude": m, "n": n} for name, (s, m) in given.items()}

    return figures(after) | {"base": figures(before)}


def _probe(generated: float, base: float, forced: float, n: int, failed: int) -> dict[str, Any]:
    return {
        "generated": generated,
        "base_generated": base,
        "teacher_forced": forced,
        "n": n,
        "conditions_failed": failed,
        "too_long": 0,
        "excluded": 0,
    }


def _outcomes(rng: random.Random, edits: int) -> list[dict[str, Any]]:
    rates = {"reliability": 0.97, "generalization": 0.715, "locality": 0.938, "multi_hop": 0.06}
    found = []
    for i in range(edits):
        person, town = rng.choice(PEOPLE), rng.choice(TOWNS)
        for measure, rate in rates.items():
            right = rng.random() < rate
            found.append(
                {
                    "record": f"made-{i}",
                    "measure": measure,
                    "prompt": f"{person} (no. {i}) was born in the town of",
                    "expected": town,
                    "answer": town if right else rng.choice([other for other in TOWNS if other != town]),
                    "generated": float(right),
                    "teacher_forced": 1.0 if right else rng.choice((0.0, 0.25, 0.5)),
                }
            )
    return found


def _scores(rng: random.Random, n: int, centre: float, spread: float, silent: float) -> list[float]:
    return [0.0 if rng.random() < silent else max(0.0, rng.gauss(centre, spread)) for _ in range(n)]


def _histogram(scores: list[float]) -> list[int]:
    counts = [0] * (len(BINS) - 1)
    for score in scores:
        counts[min(int(score / 0.05), len(counts) - 1)] += 1
    return counts


def _share(scores: list[float], test: Callable[[float], bool]) -> float:
    return sum(map(test, scores)) / len(scores)


def _roc(positive: list[float], negative: list[float]) -> list[list[float]]:
    ordered = sorted({*positive, *negative}, reverse=True)
    kept = ordered[:: max(1, len(ordered) // 150)]
    curve = [
        [_share(negative, lambda s, t=t: s >= t), _share(positive, lambda s, t=t: s >= t)]  # type: ignore[misc]
        for t in kept
    ]
    return [[0.0, 0.0], *curve, [1.0, 1.0]]


def _around(value: float, n: int) -> list[float]:
    wide = 1.96 * math.sqrt(max(value * (1 - value), 1 / n) / n)
    return [max(0.0, value - wide), min(1.0, value + wide)]


def _routing(rng: random.Random) -> dict[str, Any]:
    positives = {name: _scores(rng, n, c, s, 0.01) for name, (n, c, s) in POSITIVES.items()}
    reference = positives["paraphrases"]
    classes = {}
    for name, (n, unit, centre, spread) in CLASSES.items():
        scores = _scores(rng, n, centre, spread, 0.55 if unit == "token" else 0.15)
        roc = _roc(reference, scores[:2000])
        area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in zip(roc, roc[1:], strict=False))
        figures = {
            "auroc": area,
            "average_precision": area**2,
            "fpr_at_95_tpr": min(x for x, y in roc if y >= 0.95),
            "tpr_at_fpr_0.01": max(y for x, y in roc if x <= 0.01),
            "tpr_at_fpr_0.001": max(y for x, y in roc if x <= 0.001),
            "opened": _share(scores, lambda s: s >= 1),
        }
        classes[name] = {
            "about": f"Made-up text of the kind {name}.",
            "unit": unit,
            "n": n,
            **figures,
            **{f"{key}_ci": _around(value, n) for key, value in figures.items()},
            "against_edits": {key: min(1.0, 1.03 * value) for key, value in figures.items() if key != "opened"},
            "histogram": _histogram(scores),
            "roc": roc,
        }
    return {
        "classes": classes,
        "positives": {
            name: {
                "about": f"Edits asked as {name}.",
                "unit": "prompt",
                "n": len(scores),
                "opened": _share(scores, lambda s: s >= 1),
                "opened_ci": _around(_share(scores, lambda s: s >= 1), len(scores)),
                "slot_top1": 0.98 - 0.01 * i,
                "edit_top1": 0.96 - 0.02 * i,
                "histogram": _histogram(scores),
            }
            for i, (name, scores) in enumerate(positives.items())
        },
        "live_edits": 98,
        "not_live": 2,
        "skipped": {"positives.multi_turn": "the tokenizer has no chat template"},
        "bins": BINS,
        "scored_against": "paraphrases",
        "false_routes_per_million": 150.0,
        "false_routes_per_million_ci": [40.0, 384.0],
        "running_text_tokens": 20000,
        "slot_top1": 0.97,
        "edit_top1": 0.94,
        "flips": 0.91,
        "flips_by": {"edits": 0.2, "paraphrases": 1.3, "neighbours": 0.05},
        "by_age": [
            {
                "from": 10 * i,
                "to": 10 * i + 9,
                "edits": 10,
                "opened": 1 - 0.004 * i,
                "paraphrases_opened": 0.86 - 0.013 * i - 0.03 * (i % 3),
            }
            for i in range(10)
        ],
        "oracle": {"reliability": 1.0, "generalization": 0.83, "free_generalization": None},
    }
