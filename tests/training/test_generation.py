"""Greedy is greedy: what the model was saved with does not bend the answers that edits are verified by."""

from __future__ import annotations

import torch
from tiny import BATCH, EOS, tiny_model

from wise.training.generation import greedy, without_settings


def test_penalties_that_a_model_was_saved_with_do_not_count() -> None:
    model = tiny_model("llama")
    plain = greedy(model, BATCH, stops=[EOS], max_new_tokens=12)
    model.generation_config.repetition_penalty = 1.8
    model.generation_config.no_repeat_ngram_size = 1
    own = model.generation_config
    assert greedy(model, BATCH, stops=[EOS], max_new_tokens=12) == plain
    assert model.generation_config is own


    ids = torch.tensor([BATCH[0]])  # they are of consequence where they count
    bent = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    assert bent != plain[0][: len(bent)]


def test_a_model_without_settings_is_a_copy_that_shares_all_else() -> None:
    model = tiny_model("llama")
    model.generation_config.repetition_penalty = 1.8
    bare = without_settings(model)
    assert bare.generation_config.repetition_penalty is None and model.generation_config.repetition_penalty == 1.8
    assert list(bare.modules())[1:] == list(model.modules())[1:]
