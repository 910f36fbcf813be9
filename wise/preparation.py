"""What is measured of a base before its first edit, and the trainer that is made of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from wise.architectures import ValueProjection
from wise.config import WiseConfig
from wise.memory.context import ContextReader
from wise.memory.state import MemoryState
from wise.training.background import Background, measure
from wise.training.baselines.ground import Ground
from wise.training.encoding import Encoder
from wise.training.lesson import Lesson
from wise.training.reach import Reach
from wise.training.router_training import LearnedSpaces, learn_spaces
from wise.training.sharding import make_sharding
from wise.training.splice import SplicedModel
from wise.training.trainer import Trainer
from wise.training.writers.base import Writer
from wise.training.writers.closed_form import ClosedForm
from wise.training.writers.masked_dense import MaskedDenseWriter
from wise.training.writers.value import ValueWriter

logger = logging.getLogger(__name__)


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
    background = _with_spaces(measure(model, spliced, encoder, config, reader), state, reader)
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
        false_routes=false_routes,
        seed=config.seed,
        progress=progress,
    )


def _with_spaces(background: Background, state: MemoryState, reader: ContextReader | None) -> Background:
    """With the spaces that keys are compared in already, those of a trained router among them."""
    if state.key_space is not None and (reader is None or state.subject_space is not None):
        return replace(background, key_space=state.key_space, subject_space=state.subject_space)
    if reader is not None:
        logger.warning(
            "the router is untrained: it compares what the base's own text makes of questions and subjects, and "
            "reaches fewer wordings; learn_router() or `wise train-router` trains one"
        )
    return background
