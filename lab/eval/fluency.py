"""Fluency and consistency of free text about edited subjects, sampled from the edited model and from its base.

After ROME (Meng et al. 2022, section 3.4, and its `eval_utils_counterfact.py`). Fluency is an entropy of n-grams: it
falls where a model repeats itself. Consistency is how much the text shares words with texts about the new object.
Not ROME's very figures: words are found by a pattern, references go by object and not by relation and object, the
weights of words are those of the references, and few prompts are asked. They compare editors with each other.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from wise.errors import ConfigError, EditError, checked_text, missing
from wise.lab.eval.prompting import Prompter, Tested, check_logits, mean_over_records
from wise.lab.formats.jsonl import rows
from wise.memory.modules import execution_device
from wise.training.generation import as_asked

logger = logging.getLogger(__name__)

TOKENS = 100
"""Length of a text, its prompt counted; less where the context is shorter."""
TOP_K = 5
BATCH = 64
"""Texts that are a part of the work; among them those whose prompts are of one length are drawn together."""
MAX_PROMPTS = 2
"""Generation prompts of one record that are asked: the first ones."""
MAX_TEXTS = 200
"""Texts in all: of the first records that have prompts for them."""
WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Length of an n-gram -> weight of its entropy."""
WORDS = re.compile(r"\w+|[^\w\s]")
"""What counts as a word: a run of letters and digits, or one mark."""
OBJECTS = ("obj", "object")


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A prompt that free text is asked for."""

    record: str
    target: str
    ids: list[int]


def openings(prompter: Prompter, tested: Sequence[Tested]) -> list[Opening]:
    """The first generation prompts of the first records; one that leaves no room for a text is left out."""
    end = min(TOKENS, prompter.encoder.context)
    found = []
    for each in tested:
        edit = each.record.edit
        prompts = [prompter.encoder.prompt(text) for text in each.record.generation_prompts]
        fit = [ids for ids in prompts if 0 < len(ids) < end][:MAX_PROMPTS]
        found += [Opening(record=edit.id, target=edit.target, ids=ids) for ids in fit]
    return found[:MAX_TEXTS]


def measure_fluency(
    prompter: Prompter,
    asked: Sequence[Opening],
    *,
    references: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Entropy in bits and consistency in [0, 1] of the edited model's text and of the base's, means over records of
    means over a record's texts, and how many texts. None where nothing is asked.

    The base draws with the same random numbers, so that it says the same where nothing is edited.

    Args:
        references: target -> texts about it. Records without any have no consistency; it is None without all.

    Raises ConfigError where the model gives NaN, or references hold no word.
    """
    if not asked:
        return None
    figures: dict[str, Any] = {}
    compare = _comparison(references) if references else None
    for prefix, base in (("", False), ("base_", True)):
        texts = _sampled(prompter, asked, seed=seed, base=base)
        pairs = list(zip(asked, texts, strict=True))
        figures[f"{prefix}entropy"] = mean_over_records((o.record, entropy(text)) for o, text in pairs)
        figures[f"{prefix}consistency"] = None if compare is None else compare(pairs)
    return figures | {"n": len(asked)}


def entropy(text: str) -> float:
    """The mean of the weighted entropies, in bits, of the text's pairs and triples of words; 0 where there are none."""
    words = WORDS.findall(text)
    found = []
    for n, weight in WEIGHTS.items():
        counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        total = counts.total()
        found.append(weight * -sum(c / total * math.log2(c / total) for c in counts.values()))
    return fmean(found) + 0.0  # no negative zero


def read_references(path: str | PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Object -> texts about it, of a JSONL file (plain, `.gz`, `.xz`) with `text`, and `obj` or `object`.

    Raises EditError, naming file and line, where a line is not that.
    """
    found: dict[str, list[str]] = {}
    with closing(rows(Path(path))) as lines:
        for line, row in lines:
            try:
                name = next((name for name in OBJECTS if name in row), OBJECTS[0])
                for field in ("text", name):
                    if field not in row:
                        raise missing(field, row)
                text, about = checked_text("text", row["text"]), checked_text(name, row[name])
            except EditError as error:
                raise EditError(f"{path}:{line}: {error}") from None
            found.setdefault(about.strip(), []).append(text)
    return {about: tuple(texts) for about, texts in found.items()}


class TopK(LogitsProcessor):
    """Draws each row's next token among the `TOP_K` likeliest with the row's own random numbers, by Gumbel's trick:
    the largest of logit plus noise. What a row says is then the same whatever stands beside it."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[rows, vocabulary]` logits -> 0 at the token drawn, minus infinity elsewhere."""
        check_logits(scores)
        top = scores.float().topk(min(TOP_K, scores.shape[-1]))
        values = top.values.cpu()
        waits = [torch.empty(values.shape[-1]).exponential_(generator=own) for own in self.generators]
        drawn = (values - torch.stack(waits).log()).argmax(-1, keepdim=True)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, top.indices.gather(1, drawn.to(scores.device)), 0.0)


def _sampled(prompter: Prompter, asked: Sequence[Opening], *, seed: int, base: bool) -> list[str]:
    """A text behind each prompt, the prompt with it; it does not end before its length."""
    encoder = prompter.encoder
    end = min(TOKENS, encoder.context)

    def compute(model: PreTrainedModel, part: Sequence[Opening]) -> list[str]:
        texts = []
        given = prompter.given([opening.ids for opening in part], base=base)
        pairs = zip(part, given, strict=True)
        for (length, _), group in groupby(pairs, lambda pair: (len(pair[0].ids), len(pair[1]))):
            own, rows = zip(*((opening.ids, read) for opening, read in group), strict=True)
            settings = GenerationConfig(  # type: ignore[no-untyped-call]
                do_sample=False,
                max_new_tokens=end - length,
                min_new_tokens=end - length,
                eos_token_id=sorted(encoder.stops),
                pad_token_id=min(encoder.stops),
            )
            ids = torch.tensor(list(rows), device=execution_device(model))
            with as_asked(model):
                out = model.generate(  # type: ignore[operator]
                    ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=settings,
                    logits_processor=LogitsProcessorList([TopK([_seed(seed, ids) for ids in own])]),
                )
            said = out[:, ids.shape[1] :].tolist()
            texts += [encoder.text([*prompt, *new]) for prompt, new in zip(own, said, strict=True)]
        return texts

    return prompter.mapped("fluency", asked, compute, lambda opening: len(opening.ids), base=base, batch=BATCH)


def _seed(seed: int, ids: Sequence[int]) -> int:
    """Of one prompt, whatever is asked beside it."""
    return int.from_bytes(hashlib.sha256(repr((seed, list(ids))).encode()).digest()[:6])


class _Comparison:
    """The cosine of TF-IDF vectors between a record's texts and the references of its target; word weights are
    those of all references."""

    def __init__(self, references: Mapping[str, Sequence[str]], vectorizer: Any) -> None:
        self.references = references
        try:
            self.vectorizer = vectorizer.fit([text for texts in references.values() for text in texts])
        except ValueError as error:  # it knows no word then
            raise ConfigError(f"references: {error}; give texts, or leave them out") from error

    def __call__(self, pairs: Sequence[tuple[Opening, str]]) -> float | None:
        found = []
        for (record, target), group in groupby(pairs, lambda pair: (pair[0].record, pair[0].target)):
            if self.references.get(target):
                said = " ".join(text for _, text in group)
                vectors = self.vectorizer.transform([said, " ".join(self.references[target])])
                found.append((record, float(vectors[0].multiply(vectors[1]).sum())))
        return mean_over_records(found)


def _comparison(references: Mapping[str, Sequence[str]]) -> _Comparison | None:
    """None, with a note, where scikit-learn is not installed."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        logger.warning("consistency is not measured: it needs scikit-learn (pip install scikit-learn)")
        return None
    return _Comparison(references, TfidfVectorizer())
