"""Causal traces of many facts, averaged by the role of a token and by layer."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.architectures import locate
from wise.config import WiseConfig
from wise.errors import ConfigError
from wise.lab.eval.environment import base_description, environment
from wise.lab.eval.significance import bootstrap_interval
from wise.lab.locate.results import Effects, Location
from wise.lab.locate.roles import ROLES, token_roles
from wise.lab.locate.running import Runner
from wise.lab.locate.sites import KINDS, find_sites
from wise.lab.locate.tracing import (
    SAMPLES,
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
from wise.progress import Progress, silent
from wise.training.encoding import learn_encoder

if TYPE_CHECKING:
    from wise.lab.locate.facts import Fact


def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    samples: int = SAMPLES,
    window: int | None = None,
    seed: int = 0,
    name: str = "",
    progress: Progress = silent,
) -> Location:
    """Traces facts through a causal LM that is not wrapped; it is handed back as it was.

    samples: draws of noise per fact. window: layers whose feed-forward, or attention, outputs are restored together;
    None takes 10 of 48. name: what the model is called in the result.

    Raises ConfigError for a number out of range, or where no fact can be traced, and UnsupportedModelError for a model
    whose blocks are not known or whose probabilities are no numbers.
    """
    sites = find_sites(model)
    window = default_window(sites.depth) if window is None else window
    if not 1 <= window <= sites.depth:
        raise ConfigError(f"window={window}: expected a number from 1 to {sites.depth}, the layers of this model")
    runner = Runner(model, sites)
    with evaluating(model), torch.no_grad():
        encoder = learn_encoder(model, tokenizer, WiseConfig(terminator=""))  # how texts end does not matter here
        tested = find_known(runner, encoder, facts)
        known_facts = [fact for fact in tested if isinstance(fact, Known)]
        skipped = {why: tested.count(why) for why in SKIPPED}
        if not known_facts:
            counted = ", ".join(f"{count} {why}" for why, count in skipped.items() if count)
            raise ConfigError(f"none of {len(facts)} facts can be traced: {counted}; give facts it knows")
        width = noise_width(runner, known_facts)
        traces = []
        for fact in known_facts:
            noise = draw_noise(runner, fact, width=width, samples=samples, seed=seed)
            traces.append(trace_fact(runner, fact, noise, window=window))
            progress("trace", len(traces), len(known_facts))
    return Location(
        model={"name": name, **base_description(fingerprint(model, locate(model, WiseConfig())))},
        facts=len(known_facts),
        skipped={why: count for why, count in skipped.items() if count},
        noise=width,
        samples=samples,
        window=window,
        layers=sites.depth,
        seed=seed,
        environment=environment(runner.device),
        effects={kind: by_role(known_facts, [entry.effects[kind] for entry in traces], seed) for kind in KINDS},
        low_score=fmean(entry.low for entry in traces),
        high_score=fmean(entry.high for entry in traces),
    )


def by_role(known_facts: Sequence[Known], effects: Sequence[list[list[float]]], seed: int) -> Effects:
    """effects: per fact, per token from the subject's first on, per layer."""
    layers = len(effects[0][0])
    mean: list[list[float | None]] = []
    ci: list[list[list[float] | None]] = []
    n = []
    for role in ROLES:
        rows = []
        for fact, table in zip(known_facts, effects, strict=True):
            roles = token_roles(len(fact.ids), fact.span)[fact.span[0] :]
            role_rows = [row for row, its in zip(table, roles, strict=True) if its == role]
            if role_rows:
                rows.append(_means(role_rows))
        mean.append([*_means(rows)] if rows else [None] * layers)
        # All columns from the same draws of rows.
        intervals = [[*bootstrap_interval(column, seed=seed)] for column in zip(*rows, strict=True)]
        ci.append([*intervals] if rows else [None] * layers)
        n.append(len(rows))
    return Effects(mean=mean, ci=ci, n=n)


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(column) for column in zip(*rows, strict=True)]
