"""Fluency of free text about edited subjects, sampled from the edited model and from its base.

After ROME (Meng et al. 2022, section 3.4, and its `eval_utils_counterfact.py`). Fluency is an entropy of n-grams: it
falls where a model repeats itself. Not ROME's very figures: words are found by a pattern, and few prompts are asked.
They compare editors with each other.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from wise.lab.eval.prompting import Prompter, TestedRecord, check_logits, mean_over_records
from wise.memory.modules import execution_device
from wise.training.generation import without_settings

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


@dataclass(frozen=True, kw_only=True)
class Opening:
    record: str
    ids: list[int]


def openings(prompter: Prompter, tested: Sequence[TestedRecord]) -> list[Opening]:
    """The first generation prompts of the first records; one that leaves no room for a text is left out."""
    end = min(TOKENS, prompter.encoder.context)
    results = []
    for each in tested:
        edit = each.record.edit
        prompts = [prompter.encoder.prompt(text) for text in each.record.generation_prompts]
        fit = [ids for ids in prompts if 0 < len(ids) < end][:MAX_PROMPTS]
        results += [Opening(record=edit.id, ids=ids) for ids in fit]
    return results[:MAX_TEXTS]


def measure_fluency(prompter: Prompter, prompts: Sequence[Opening], *, seed: int = 0) -> dict[str, Any] | None:
    """Entropy in bits of the edited model's text and of the base's, which draws with the same random numbers: means
    over records of means over a record's texts, and how many texts. None where nothing is asked. Raises ConfigError
    where the model gives NaN."""
    if not prompts:
        return None
    figures: dict[str, Any] = {"n": len(prompts)}
    for name, base in (("entropy", False), ("base_entropy", True)):
        texts = sampled(prompter, prompts, seed=seed, base=base)
        figures[name] = mean_over_records((o.record, entropy(text)) for o, text in zip(prompts, texts, strict=True))
    return figures


def entropy(text: str) -> float:
    """The mean of the weighted entropies, in bits, of the text's pairs and triples of words; 0 where there are none."""
    words = WORDS.findall(text)
    results = []
    for n, weight in WEIGHTS.items():
        counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        total = counts.total()
        results.append(weight * -sum(c / total * math.log2(c / total) for c in counts.values()))
    return fmean(results) + 0.0  # no negative zero


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
        waits = [torch.empty(values.shape[-1]).exponential_(generator=generator) for generator in self.generators]
        drawn = (values - torch.stack(waits).log()).argmax(-1, keepdim=True)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, top.indices.gather(1, drawn.to(scores.device)), 0.0)


def sampled(prompter: Prompter, openings: Sequence[Opening], *, seed: int, base: bool) -> list[str]:
    """A text behind each prompt, the prompt with it; it does not end before its length."""
    encoder = prompter.encoder
    end = min(TOKENS, encoder.context)

    def compute(model: PreTrainedModel, part: Sequence[Opening]) -> list[str]:
        texts = []
        contexts = prompter.with_context([opening.ids for opening in part], base=base)
        pairs = zip(part, contexts, strict=True)
        for (length, _), group in groupby(pairs, lambda pair: (len(pair[0].ids), len(pair[1]))):
            prompts, rows = zip(*((opening.ids, read) for opening, read in group), strict=True)
            settings = GenerationConfig(  # type: ignore[no-untyped-call]
                do_sample=False,
                max_new_tokens=end - length,
                min_new_tokens=end - length,
                eos_token_id=sorted(encoder.stops),
                pad_token_id=min(encoder.stops),
            )
            ids = torch.tensor(list(rows), device=execution_device(model))
            out = without_settings(model).generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                logits_processor=LogitsProcessorList([TopK([_seed(seed, ids) for ids in prompts])]),
            )
            answer = out[:, ids.shape[1] :].tolist()
            texts += [encoder.text([*prompt, *new]) for prompt, new in zip(prompts, answer, strict=True)]
        return texts

    return prompter.mapped("fluency", openings, compute, lambda opening: len(opening.ids), base=base, batch=BATCH)


def _seed(seed: int, ids: Sequence[int]) -> int:
    """Of one prompt, whatever is asked beside it."""
    return int.from_bytes(hashlib.sha256(repr((seed, list(ids))).encode()).digest()[:6])
