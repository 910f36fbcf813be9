"""The second moment of a projection's inputs: what it is, where it is kept, and when there is none."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from editing_contexts import tiny_context
from tiny import BOS, text, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from wise.errors import ConfigError
from wise.lab.editors import statistics
from wise.lab.editors.statistics import (
    MomentSettings,
    factored,
    prepared_moments,
    with_ridge,
)

TOKENS = 400


def corpus(rows: int = 40, *, seed: int = 0) -> tuple[str, ...]:
    """Texts of unlike length."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        text(torch.randint(4, 96, (7 + i % 9,), generator=generator).tolist()) for i in range(rows)
    )


def computed(context, **changes):
    return prepared_moments(context, [1], settings(**changes))[0]


def settings(**changes):
    return MomentSettings(**{"tokens": TOKENS, "length": 10, "ridge": 0.0} | changes)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox"])
def test_is_the_mean_outer_product_over_all_tokens_of_the_corpus(model_type):
    context = tiny_context(model_type, texts=corpus())
    projection = context.projection(1)
    rows = list(context.corpus(TOKENS, length=10))
    assert sum(map(len, rows)) == TOKENS and len({len(row) for row in rows}) > 1
    seen = []
    handle = context.model.get_submodule(projection.path).register_forward_hook(
        lambda _, args, out: seen.append(args[0].reshape(-1, projection.in_features).double())
    )
    with torch.no_grad():
        for row in rows:  # one by one: no padding, no batches
            context.model(torch.tensor([row]), use_cache=False)
    handle.remove()
    keys = torch.cat(seen)
    direct = keys.T @ keys / TOKENS
    found = computed(context)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, direct, rtol=1e-4, atol=1e-5)
    centred = direct - torch.outer(keys.mean(0), keys.mean(0))
    assert not torch.allclose(found, centred, rtol=1e-2, atol=1e-3)


def test_several_layers_come_from_one_pass_and_are_each_their_own(monkeypatch):
    context = tiny_context(texts=corpus())
    passes = []
    whole = statistics._computed
    monkeypatch.setattr(statistics, "_computed", lambda *args: passes.append(args) or whole(*args))
    both = prepared_moments(context, [0, 1], settings())
    assert len(passes) == 1
    torch.testing.assert_close(both[1], computed(context))
    assert not torch.allclose(both[0], both[1], rtol=0.1)


def test_the_base_speaks_for_itself_alike_for_the_same_seed():
    first, second, other = (computed(tiny_context(), length=32, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_is_kept_for_this_base_and_this_corpus_only(tmp_path, monkeypatch):
    passes = []
    whole = statistics._computed
    monkeypatch.setattr(statistics, "_computed", lambda *args: passes.append(args) or whole(*args))
    first = computed(tiny_context(texts=corpus(), cache=tmp_path))
    again = computed(tiny_context(texts=corpus(), cache=tmp_path))
    assert len(passes) == 1 and torch.equal(first, again)
    computed(tiny_context(texts=corpus(seed=1), cache=tmp_path))
    assert len(passes) == 2
    other = tiny_context(texts=corpus(), cache=tmp_path)
    other.model.get_parameter("model.layers.0.mlp.down_proj.weight").data += 0.01
    computed(other)
    computed(tiny_context(texts=corpus(), cache=tmp_path), length=9)
    assert len(passes) == 4 == len(list(tmp_path.iterdir()))


def test_a_foreign_file_under_its_name_is_refused(tmp_path, caplog):
    right = computed(tiny_context(texts=corpus(), cache=tmp_path))
    (file,) = tmp_path.iterdir()
    computed(tiny_context(texts=corpus(seed=1), cache=tmp_path))
    (foreign,) = set(tmp_path.iterdir()) - {file}
    file.write_bytes(foreign.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert torch.equal(computed(tiny_context(texts=corpus(), cache=tmp_path)), right)
    assert "computed anew" in caplog.text


def test_tells_how_far_it_is():
    told = []
    computed(tiny_context(texts=corpus(), progress=lambda *args: told.append(args)))
    assert told[-1] == ("second moment", TOKENS, TOKENS)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told) and len(told) > 1


def test_fewer_tokens_than_inputs_are_refused():
    with pytest.raises(ConfigError, match=r"tokens=63: the projection has 64 inputs.*at least 64"):
        computed(tiny_context(texts=corpus()), tokens=63)


def test_a_corpus_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="give more text"):
        computed(tiny_context(texts=corpus(3)))


def test_a_singular_moment_says_what_to_do_and_a_ridge_does_it():
    keys = torch.randn(10, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moment = keys.T @ keys / 10
    with pytest.raises(ConfigError, match=r"singular.*more text.*larger ridge"):
        factored(moment)
    whole = with_ridge(moment, 1e-3)
    factor = factored(whole)
    torch.testing.assert_close(factor @ factor.T, whole)
    torch.testing.assert_close(whole - moment, 1e-3 * moment.trace() / 16 * torch.eye(16, dtype=torch.float64))


def test_settings_are_checked_and_followed():
    for wrong in ({"tokens": 0}, {"length": 1}, {"ridge": -1.0}, {"tokens": True}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            MomentSettings(**wrong)
    context = tiny_context(texts=corpus())
    (found,) = prepared_moments(context, [1], settings(ridge=0.5))
    torch.testing.assert_close(found, with_ridge(computed(context), 0.5))


def test_every_row_begins_as_a_prompt_does_whoever_puts_it_there():
    """The rows behind a text's first had no beginning-of-sequence where the tokenizer puts it, and not the encoder."""
    ours = tiny_context(texts=corpus())
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    theirs = replace(ours, encoder=replace(ours.encoder, tokenizer=tokenizer, bos=()))
    rows = list(theirs.corpus(TOKENS, length=6))
    assert all(row[0] == BOS and BOS not in row[1:] for row in rows) and rows == list(ours.corpus(TOKENS, length=6))
    without = replace(ours, encoder=replace(ours.encoder, bos=()))  # the control
    assert not any(BOS in row for row in without.corpus(TOKENS, length=6))
