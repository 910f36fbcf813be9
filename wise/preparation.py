"""What is measured of a base before its first edit, and the trainer that is made of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from wise.architectures import ValueProjection
from wise.config import WiseConfig
from wise.memory.context import ContextReader
from wise.memory.key_space import HIGHEST
from wise.memory.state import MemoryState
from wise.questions import shipped_lessons
from wise.training.background import Background, measure
from wise.training.baselines.ground import Ground
from wise.training.calibration import calibrate
from wise.training.encoding import Encoder
from wise.training.evidence import Evidence, observe
from wise.training.lesson import Lesson
from wise.training.reach import Reach
from wise.training.router_training import LEAST, LearnedSpaces, learn_spaces
from wise.training.sharding import make_sharding
from wise.training.splice import SplicedModel
from wise.training.trainer import Trainer
from wise.training.writers.base import Writer
from wise.training.writers.closed_form import ClosedForm
from wise.training.writers.masked_dense import MaskedDenseWriter
from wise.training.writers.value import ValueWriter

logger = logging.getLogger(__name__)

SUBJECTS = 2
"""Of which each of the questions that ship is asked, for the floors of an untrained router."""
FALSE_ROUTES = 0.05
"""Share of unlike questions that each of those floors lets pass."""
PLAIN = 0.5, 0.8
"""Floors of relations and subjects where the tokenizer does not know the words of these questions."""


def make_trainer(
    model: PreTrainedModel,
    projection: ValueProjection,
    encoder: Encoder,
    config: WiseConfig,
    *,
    reader: ContextReader | None,
    state: MemoryState,
) -> Trainer:
    """Measures the base, whose memory must be out of place, and readies a writer for it.

    reader: what `hybrid` looks for subjects in. state: whose spaces keys are compared in, where it has them.
    """
    spliced = SplicedModel(model, projection)
    background = measure(model, spliced, encoder, config, reader)
    if state.key_space is not None and (reader is None or state.subject_space is not None):
        background = replace(background, key_space=state.key_space, subject_space=state.subject_space)
    elif reader is not None:
        background = _with_floors(background, spliced, reader, encoder, config)
    return Trainer(
        spliced=spliced,
        encoder=encoder,
        background=background,
        writer=_writer(model, projection, spliced, encoder, background, config, reader),
        sharding=make_sharding(config, spliced, encoder, background.key_space),
        config=config,
        dtype=model.dtype,
        reach=None if reader is None else Reach(spliced, reader, encoder, background),
    )


def _writer(
    model: PreTrainedModel,
    projection: ValueProjection,
    spliced: SplicedModel,
    encoder: Encoder,
    background: Background,
    config: WiseConfig,
    reader: ContextReader | None,
) -> Writer:
    if reader is None:
        return MaskedDenseWriter(spliced, encoder, background, config, model.dtype)
    closed_form = None
    if config.writer != "gradient":
        ground = Ground(model=model, encoder=encoder, value_projection=config.value_projection)
        closed_form = ClosedForm.of(ground, projection.layer, seed=config.seed)
    return ValueWriter(spliced, encoder, background, config, reader, closed_form)


def train_spaces(
    model: PreTrainedModel,
    projection: ValueProjection,
    encoder: Encoder,
    config: WiseConfig,
    reader: ContextReader,
    lessons: Sequence[Lesson],
    *,
    texts: Sequence[str],
    false_routes: float,
    progress: Callable[[str, int, int], None],
) -> LearnedSpaces:
    """A router trained on the base, whose memory must be out of place; see `learn_spaces`."""
    spliced = SplicedModel(model, projection)
    background = measure(model, spliced, encoder, config, reader)
    return learn_spaces(
        spliced,
        reader,
        encoder,
        background,
        lessons,
        texts=texts,
        subject_fraction=config.subject_fraction,
        false_routes=false_routes,
        seed=config.seed,
        progress=progress,
    )


def _with_floors(
    background: Background, spliced: SplicedModel, reader: ContextReader, encoder: Encoder, config: WiseConfig
) -> Background:
    """With the floors of the untrained spaces: those that are set, or else found with questions that ship.

    Bases differ in them. No answers are needed, and none of the questions is learned from.
    """
    relation, subject = background.key_space, background.subject_space
    if subject is None:
        raise RuntimeError("the background was measured for another mode: it has no subject space")

    def read(asked: Sequence[Lesson], surroundings: int) -> Evidence:
        return observe(spliced, reader, encoder, asked, relation.recent, surroundings)

    asks: tuple[float, ...] = (PLAIN[0],)
    whom: tuple[float, ...] = (PLAIN[1],)
    if config.relation_floor is None or config.subject_floor is None:
        lessons = [each for each in shipped_lessons(seed=config.seed, subjects=SUBJECTS) if encoder.reads(each.prompt)]
        if len({each.fact for each in lessons}) >= LEAST:
            every = torch.ones(len(lessons), dtype=torch.bool)
            found = calibrate(read, lessons, read(lessons, 0), every, (relation, subject), FALSE_ROUTES, config.seed)
            asks, whom = _reachable(found.relation), _reachable(found.subject)
    asks = asks if config.relation_floor is None else (config.relation_floor,)
    whom = whom if config.subject_floor is None else (config.subject_floor,)
    background = replace(
        background, key_space=replace(relation, floors=asks), subject_space=replace(subject, floors=whom)
    )
    logger.warning(
        "the router is untrained: it compares what the base's own text makes of questions (floor %.2f) and subjects "
        "(%.2f), and reaches fewer wordings; learn_router() or `wise train-router` trains one",
        asks[0],
        whom[0],
    )
    return background


def _reachable(floors: tuple[float, ...]) -> tuple[float, ...]:
    """An edit's own question reaches each, however it is rounded."""
    return tuple(min(floor, HIGHEST) for floor in floors)
