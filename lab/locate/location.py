"""Causal traces of many facts, averaged by the role of a token and by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.architectures import locate
from wise.config import WiseConfig
from wise.errors import ConfigError
from wise.lab.eval.checkpoint import Checkpoint
from wise.lab.eval.environment import environment
from wise.lab.eval.significance import bootstrap_interval
from wise.lab.locate.results import Effects, Location
from wise.lab.locate.roles import ROLES, token_roles
from wise.lab.locate.running import Runner
from wise.lab.locate.sites import KINDS, find_sites
from wise.lab.locate.tracing import (
    SAMPLES,
    SEVERED,
    SKIPPED,
    Known,
    default_window,
    draw_noise,
    find_known,
    noise_width,
    trace_fact,
)
from wise.memory.fingerprint import fingerprint
from wise.memory.modules import evaluating
from wise.training.encoding import Encoder, learn_encoder

if TYPE_CHECKING:
    from wise.lab.formats.facts import Fact


def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    samples: int = SAMPLES,
    window: int | None = None,
    seed: int = 0,
    name: str = "",
    checkpoint: Checkpoint | None = None,
) -> Location:
    """Traces facts through a causal LM that is not wrapped; it is handed back as it was.

    Args:
        samples: draws of noise per fact.
        window: layers whose feed-forward, or attention, outputs are restored together; None takes 10 of 48.
        name: what the model is called in the result.
        checkpoint: keeps finished facts and says how far it is.

    Raises ConfigError for a number out of range, or where no fact can be traced, and UnsupportedModelError for a
    model whose blocks are not known or whose probabilities are no numbers.
    """
    checkpoint = checkpoint or Checkpoint()
    sites = find_sites(model)
    window = default_window(sites.depth) if window is None else window
    _check(facts, samples, window, sites.depth)
    runner = Runner(model, sites)
    with evaluating(model), torch.no_grad():
        found = _find(runner, _encoder(model, tokenizer), facts, checkpoint)
        known = [fact for fact in found if isinstance(fact, Known)]
        skipped = {why: found.count(why) for why in SKIPPED}
        if not known:
            raise ConfigError(f"none of {len(facts)} facts can be traced: {_counted(skipped)}; give facts it knows")
        width = noise_width(runner, known)

        def compute(chunk: Sequence[Known]) -> list[Any]:
            drawn = [(fact, draw_noise(runner, fact, width=width, samples=samples, seed=seed)) for fact in chunk]
            return [trace_fact(runner, fact, noise, window=window).to_dict() for fact, noise in drawn]

        traces = checkpoint.map("trace", known, compute, batch=1)
    return Location(
        model={"name": name, **_about(model)},
        facts=len(known),
        skipped={why: count for why, count in skipped.items() if count},
        noise=width,
        samples=samples,
        window=window,
        layers=sites.depth,
        seed=seed,
        environment=environment(runner.device),
        **_averages(known, traces, seed),
    )


def _check(facts: Sequence[Fact], samples: int, window: int, depth: int) -> None:
    if not facts:
        raise ConfigError("no fact was given: expected at least one")
    if samples < 1:
        raise ConfigError(f"samples={samples}: expected a whole number from 1")
    if not 1 <= window <= depth:
        raise ConfigError(f"window={window}: this model has {depth} layers; expected a whole number from 1 to that")


def _encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """How the base begins its texts; how it ends them does not matter here, and is not learned."""
    return learn_encoder(model, tokenizer, WiseConfig(terminator=""))


def _find(runner: Runner, encoder: Encoder, facts: Sequence[Fact], checkpoint: Checkpoint) -> list[Known | str]:
    """Not kept in the checkpoint: it is quick, and decides what the parts that are kept mean."""
    found: list[Known | str] = []
    for fact in facts:
        found += find_known(runner, encoder, [fact])
        if checkpoint.progress is not None:
            checkpoint.progress("facts", len(found), len(facts))
    return found


def _about(model: PreTrainedModel) -> dict[str, Any]:
    base = fingerprint(model, locate(model, WiseConfig()))
    return {
        "type": base.model_type,
        "parameters": base.parameters,
        "depth": base.depth,
        "dtype": base.dtype,
        "fingerprint": base.digest,
    }


def _counted(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in skipped.items() if count)


def _averages(known: Sequence[Known], traces: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """The fields of `Location` that are means over facts."""
    severed = {name: [trace["severed"][name] for trace in traces] for name in SEVERED}
    return {
        "effects": {kind: _by_role(known, [t["effects"][kind] for t in traces], seed) for kind in KINDS},
        "low_score": fmean(trace["low"] for trace in traces),
        "high_score": fmean(trace["high"] for trace in traces),
        "severed": {name: _columns(rows, fmean) for name, rows in severed.items()},
        "severed_ci": {name: _intervals(rows, seed) for name, rows in severed.items()},
    }


def _by_role(known: Sequence[Known], effects: Sequence[list[list[float]]], seed: int) -> Effects:
    """effects: per fact, per token from the subject's first on, per layer."""
    layers = len(effects[0][0])
    mean: list[list[float | None]] = []
    ci: list[list[list[float] | None]] = []
    n = []
    for role in ROLES:
        rows = []
        for fact, table in zip(known, effects, strict=True):
            roles = token_roles(len(fact.ids), fact.span)[fact.span[0] :]
            held = [row for row, its in zip(table, roles, strict=True) if its == role]
            if held:
                rows.append(_columns(held, fmean))
        mean.append([*_columns(rows, fmean)] if rows else [None] * layers)
        ci.append([*_intervals(rows, seed)] if rows else [None] * layers)
        n.append(len(rows))
    return Effects(mean=mean, ci=ci, n=n)


def _intervals(rows: Sequence[Sequence[float]], seed: int) -> list[list[float]]:
    """Per column its 95% interval, low and high: all columns from the same draws of rows."""
    return [[*bootstrap_interval(column, seed=seed)] for column in zip(*rows, strict=True)]


def _columns(rows: Sequence[Sequence[float]], of: Callable[[Sequence[float]], float]) -> list[float]:
    return [of(column) for column in zip(*rows, strict=True)]
