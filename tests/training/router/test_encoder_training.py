"""Teaching makes wordings of one relation agree and others differ; what was taught is read back as it was."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from wise.errors import ArtifactError
from wise.router.encoder import SentenceEncoder, dequantized, digest, quantized, read_trained
from wise.router.sentences import is_question
from wise.router.subjects import PLACEHOLDER
from wise.training.router.calibration import FALSE_POSITIVE_RATE, SENTENCE_RATE, measure, nearest_relation
from wise.training.router.encoder_training import train_encoder
from wise.training.router.examples import framed, put, relation_names, split, stated

VERBS = {"made": "makes built constructed produced", "sold": "sells offers retails markets", "bought": "buys acquires "
         "purchases takes", "seen": "sees watches views notices", "sung": "sings hums chants intones"}
STOCK = {
    "subjects": {"thing": ["alpha", "beta", "gamma", "delta"]},
    "thing": {
        name: {
            "wordings": [f"who {verb} {{}}?" for verb in verbs.split()] + [f"{verbs.split()[0]} {{}} that is"],
            "answers": ["alpha", "beta."],
        }
        for name, verbs in VERBS.items()
    },
}


def tiny_encoder() -> tuple[BertModel, PreTrainedTokenizerFast]:
    others = "who that is this alpha beta gamma delta ? ."
    found = {word for text in (*VERBS.values(), others) for word in text.split()}
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *sorted(found)])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=128, **size)
    return BertModel(config, add_pooling_layer=False).eval(), tokenizer


def taught(tmp_path: Path, steps: int = 2) -> tuple[SentenceEncoder, Path]:
    model, tokenizer = tiny_encoder()
    tensors, _ = train_encoder(model, tokenizer, STOCK, known=STOCK, steps=steps, seed=0, progress=lambda *_: None)
    save_file(tensors, tmp_path / "relations.safetensors")
    model, tokenizer = tiny_encoder()
    file = tmp_path / "relations.safetensors"
    return SentenceEncoder(model, tokenizer, read_trained(file), name=digest(model, file)), file


def test_what_was_taught_is_deterministic_and_read_back(tmp_path: Path) -> None:
    reader, file = taught(tmp_path)
    (tmp_path / "again").mkdir()
    again, other = taught(tmp_path / "again")
    texts = ["who makes this?", "who sells this?", "this"]
    assert file.read_bytes() == other.read_bytes() and reader.name == again.name
    vectors = reader.read(texts)
    assert torch.equal(vectors, again.read(texts)) and torch.allclose(vectors.norm(dim=-1), torch.ones(3), atol=1e-5)
    fresh = [SentenceEncoder(*tiny_encoder(), read_trained(file), name=reader.name) for _ in texts]
    alone = torch.cat([own.read([text]) for own, text in zip(fresh, texts, strict=True)])
    assert torch.equal(alone, vectors), "to the bit, alone and among others"
    assert 0 < reader.threshold <= 1 and len(reader.relation_centres) == len(relation_names(STOCK))


def test_the_threshold_lets_the_stated_share_of_other_questions_pass() -> None:
    drawn = random.Random(0)
    others: dict[bool, list[float]] = {True: [], False: []}

    def network(texts: list[str]) -> torch.Tensor:
        """What is asked for is at 1, and what else is asked anywhere below."""
        found = [1.0 if set(VERBS["made"].split()) & set(text.split()) else drawn.random() for text in texts]
        for text, score in zip(texts, found, strict=True):
            if PLACEHOLDER in text and score < 1:
                others[is_question(text)].append(score)
        return torch.tensor(found)[:, None]

    figures = measure(network, STOCK, {"thing": ["made"] * 100}, torch.ones(1, 1))
    for threshold, rate, scores in (
        (figures.threshold, FALSE_POSITIVE_RATE, others[True]),
        (figures.sentence_threshold, SENTENCE_RATE, others[False]),
    ):
        passing = sum(score >= threshold for score in scores)
        assert len(scores) > 100 and passing == pytest.approx(rate * len(scores), abs=1)
    assert figures.recall == figures.sentence_recall == 1


def test_no_relation_is_both_taught_and_held_out() -> None:
    first, second = split(STOCK)
    assert set(first["thing"]) | set(second["thing"]) == set(VERBS) and not set(first["thing"]) & set(second["thing"])


def test_a_subject_that_opens_a_sentence_is_large_and_frames_keep_the_question() -> None:
    import random

    assert put("alpha", "{} is") == "Alpha is" and put("alpha", "who {}?") == "who alpha?"
    assert all("who makes alpha" in framed("who makes alpha?", random.Random(i)) for i in range(20))


def test_an_answer_tells_the_relation_where_the_question_does_not() -> None:
    assert stated("this is from", "Spain.") == "this is from Spain."
    city, country = torch.eye(2)
    vague = (city + country) / 2 + 0.01 * country
    centres = torch.stack([city, country])
    assert nearest_relation(vague[None], centres) == 1
    assert nearest_relation(torch.stack([vague, city]), centres) == 0


def test_what_was_taught_on_another_encoder_is_refused(tmp_path: Path) -> None:
    model, tokenizer = tiny_encoder()
    tensors, _ = train_encoder(model, tokenizer, STOCK, known=STOCK, steps=1, seed=0, progress=lambda *_: None)
    name = next(name for name in tensors if f"{name}.scale" in tensors)
    unfit: list[tuple[dict[str, torch.Tensor], str]] = [
        ({"encoder.layer.9.x": torch.zeros(1)}, "trained on another encoder"),
        ({name: tensors[name][:-1]}, f"'{name}': int8"),
        ({name: tensors[name].float()}, f"'{name}': int8"),
        ({f"{name}.scale": torch.full_like(tensors[f"{name}.scale"], torch.inf)}, f"'{name}': int8"),
        ({"thresholds": torch.ones(2)}, "'thresholds' has shape"),
        ({"thresholds": torch.full((4,), torch.nan)}, "'thresholds' has shape"),
        ({"projection": torch.ones(3)}, "'projection' has shape"),
    ]
    for wrong, said in unfit:
        with pytest.raises(ArtifactError, match=said):
            SentenceEncoder(*tiny_encoder(), tensors | wrong, name="x")
    with pytest.raises(ArtifactError, match="'projection' is missing"):
        SentenceEncoder(*tiny_encoder(), {}, name="x")
    (tmp_path / "broken").write_bytes(b"nothing")
    for name in ("broken", "missing"):
        with pytest.raises(ArtifactError):
            read_trained(tmp_path / name)


def test_a_change_is_kept_in_a_fourth_of_its_bytes() -> None:
    change = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, 7)[:, None]
    change[3] = 0
    values, scale = quantized(change)
    error = (dequantized(values, scale) - change).abs()
    assert values.dtype == torch.int8 and bool((error <= change.abs().amax(-1, keepdim=True) / 254 * 1.001).all())
    assert error.max() > 0 and not dequantized(values, scale)[3].any()
