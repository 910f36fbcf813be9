"""Building a trainer: the base is measured, and each mode gets its writer, verifier and key space."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from wise.architectures import TargetModule
from wise.config import WiseConfig
from wise.errors import UnsupportedModelError
from wise.memory.key_space import KeySpace, Space
from wise.memory.state import MemoryState
from wise.router.hybrid import RouterInputs
from wise.training.encoding import Encoder
from wise.training.router.builtin_questions import builtin_questions
from wise.training.splice import SplicedModel
from wise.training.trainer import Trainer
from wise.training.verification import PromptVerifier, Verifier, WordingVerifier
from wise.training.wordings import Wordings
from wise.training.writers.answer import AnswerWriter
from wise.training.writers.base import Sharding, Writer
from wise.training.writers.masked_dense import MaskedDenseWriter
from wise.training.writers.masked_dense_statistics import measure


def build_trainer(
    model: PreTrainedModel,
    target_module: TargetModule,
    encoder: Encoder,
    config: WiseConfig,
    *,
    inputs: RouterInputs | None,
    state: MemoryState,
) -> Trainer:
    """Measures the base, whose memory must be out of place, and readies a writer for it.

    inputs: what the router of `hybrid` reads; None in the other modes. state: in whose space keys are compared, where
    it has one.
    """
    spliced = SplicedModel(model, target_module)
    if spliced.no_gradient:
        raise UnsupportedModelError(f"this base can be served but not edited here: {spliced.no_gradient}")
    verifier: Verifier
    writer: Writer
    space: Space
    if inputs is not None:
        wordings = Wordings(encoder, inputs.reader, builtin_questions())
        space, verifier = inputs.reader.key_space, WordingVerifier(wordings=wordings, inputs=inputs)
        writer = AnswerWriter(spliced, wordings, config)
    else:
        statistics = measure(model, spliced, encoder, config)
        key_space = state.key_space if isinstance(state.key_space, KeySpace) else statistics.key_space
        space, verifier = key_space, PromptVerifier(encoder=encoder)
        writer = MaskedDenseWriter(spliced, encoder, replace(statistics, key_space=key_space), config, model.dtype)
    return Trainer(
        spliced=spliced,
        encoder=encoder,
        key_space=space,
        verifier=verifier,
        writer=writer,
        sharding=Sharding.of(config, target_module.in_features),
        config=config,
        dtype=model.dtype,
    )
