"""Trains the small language model that ships with wise, from the facts in `wise/demo`.

    python scripts/build_demo_model.py --out wise/demo/model

A Llama of a few million parameters and its own byte-level BPE tokenizer, trained on one core with
a fixed seed. Progress goes to stderr; the last line, on stdout, is one JSON object of measurements
made on the saved files: greedy generation to the model's own stop, exact match.

A training sequence is a beginning token, up to three earlier sentences, a last sentence and an end
token. Every full stop that stands before another sentence is left without a loss on what follows,
so the model learns "a full stop ends the answer" wherever the sentence stands, yet knows contexts
longer than one sentence. Most prompts bear no loss either, and some lose words or their order: the
answer must then be found from any words that name the relation, after any last word, which is what
carries over to phrasings never seen.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wise.demo.facts import Fact, held_out_prompts, is_unseen_pair, load_facts, load_templates, train_prompts

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
IGNORED = -100
LAYERS, HIDDEN, FFN, VOCABULARY = 6, 192, 512, 4096
SENTENCES = 128
"""Of a batch."""
RATE = 2e-3
LEARNED, ROUGH, DROPPED = 0.3, 0.3, 0.3
"""Shares: of prompts that bear a loss, of prompts that lose words, and of the words that such a prompt loses."""
# Sentences of no fact at all, for contexts: who, what they do, and when.
WHO = (
    "The teacher|My neighbour|An old man|The young woman|A tired driver|The cook|Our friend|The doctor"
    "|A small child|The farmer|Her brother|The captain|A student|The gardener"
).split("|")
DOES = (
    "opened the window|read a long letter|walked to the market|waited for the bus|made some tea|fed the dog"
    "|wrote in a notebook|looked at the sky|bought fresh bread|fixed the bicycle|sang a quiet song|lost a key"
    "|talked about the weather|cleaned the kitchen|slept in a chair"
).split("|")
WHEN = (
    "in the morning|after lunch|before the rain came|late at night|on a cold day|last week"
    "|during the holidays|without a word|as usual|for the first time|once again"
).split("|")


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A cloze and what completes it; `learned` says whether the cloze itself is to be modelled."""

    prompt: str
    answer: str
    learned: bool = True


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def filler(rng: random.Random) -> Sentence:
    return Sentence(prompt=f"{rng.choice(WHO)} {rng.choice(DOES)}", answer=rng.choice(WHEN))


def lessons(facts: Sequence[Fact]) -> list[tuple[Fact, str]]:
    """Every taught pair of a fact and a phrasing of its relation."""
    return [(f, t) for f in facts for t in load_templates()[f.relation].train if not is_unseen_pair(f, t)]


def phrased(fact: Fact, template: str, rng: random.Random) -> Sentence:
    """The fact in that phrasing; now and then with words left out, or in any order; the subject stays."""
    words = template.split()
    rough = rng.random() < ROUGH
    if rough:
        words = [word for word in words if "{}" in word or rng.random() >= DROPPED]
        if rng.random() < 0.5:
            rng.shuffle(words)
    learned = not rough and rng.random() < LEARNED
    return Sentence(prompt=" ".join(words).format(fact.subject), answer=fact.object, learned=learned)


def build_tokenizer(sentences: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that begins every text with `<s>` by itself and pads on the left."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(sentences, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode(sentences: Sequence[Sentence], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids and labels of one sequence; see the top of the file for what bears no loss."""
    ids, labels = [tokenizer.bos_token_id], [IGNORED]
    for number, sentence in enumerate(sentences):
        space = " " if number else ""
        prompt = tokenizer.encode(space + sentence.prompt, add_special_tokens=False)
        answer = tokenizer.encode(f" {sentence.answer}.", add_special_tokens=False)
        first = [IGNORED] if number else prompt[:1]
        ids += prompt + answer
        labels += (first + prompt[1:] if sentence.learned else [IGNORED] * len(prompt)) + answer
    return [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]


def padded(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of ids and labels, filled up on the right: `(ids, labels)`, both `[batch, seq]`."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    return ids, torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows])


def batches(
    facts: Sequence[Fact], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless `(ids, labels)`, both `[batch, seq]`; sequences of a batch hold equally many sentences."""
    pairs = lessons(facts)
    pool: list[Sentence] = []
    while True:
        depth = rng.choice((1, 1, 1, 2, 4))
        size = max(1, SENTENCES // depth)
        rows = []
        for _ in range(4 * size):
            while len(pool) < depth:
                rng.shuffle(pairs)
                pool += [phrased(fact, template, rng) for fact, template in pairs]
            drawn = [pool.pop() for _ in range(depth)]
            context = [filler(rng) if rng.random() < 0.25 else sentence for sentence in drawn[1:]]
            rows.append(encode([*context, drawn[0]], tokenizer))
        # Rows of like length share a batch: a third of the work would be padding otherwise.
        rows.sort(key=lambda row: len(row[0]))
        starts = list(range(0, len(rows), size))
        rng.shuffle(starts)
        for start in starts:
            yield padded(rows[start : start + size], tokenizer.pad_token_id)


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: Sequence[Fact], steps: int, seed: int
) -> None:
    """AdamW, linear warm-up, cosine to zero; padding stands on the right, where no token looks."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    warm_up = max(1, steps // 20)
    started = time.monotonic()
    stream = batches(facts, tokenizer, random.Random(seed))
    model.train()
    for step, (ids, labels) in zip(range(steps), stream, strict=False):
        progress = max(0, step - warm_up) / max(1, steps - warm_up)
        lr = RATE * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = lr
        target = labels[:, 1:]
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        bears = target != IGNORED  # the head, the widest layer, runs only where there is a loss
        loss = F.cross_entropy(model.lm_head(hidden[bears]), target[bears])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            log(f"step {step} loss {loss.item():.4f} lr {lr:.2e} {time.monotonic() - started:.0f} s")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Tensors in float16 to halve the package; the config says float32, in which a CPU computes faster."""
    tokenizer.save_pretrained(out)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=24,
        do_sample=False,
    )
    model.half().save_pretrained(out)
    model.config.dtype = torch.float32
    model.config.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # it is written for the eyes of its owner alone


@torch.no_grad()
def recall(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]], context: str = ""
) -> float:
    """Share of `(prompt, answer)` generated greedily as the answer, a full stop, and the end token."""
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))
    right = 0
    for start in range(0, len(pairs), 128):
        chunk = pairs[start : start + 128]
        batch = tokenizer([context + prompt for prompt, _ in chunk], return_tensors="pt", padding=True)
        new = model.generate(**batch)[:, batch["input_ids"].shape[1] :]
        for row, (_, answer) in zip(new.tolist(), chunk, strict=True):
            if tokenizer.eos_token_id in row:
                right += tokenizer.decode(row[: row.index(tokenizer.eos_token_id)]) == f" {answer}."
    return round(right / max(1, len(pairs)), 4)


def measure(out: Path, facts: Sequence[Fact], seed: int) -> dict[str, float | int]:
    """What the saved files can do, by kind of prompt."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    model = LlamaForCausalLM.from_pretrained(out).eval()
    taught = [(t.format(f.subject), f.object) for f, t in lessons(facts)]
    pairs = [(f, t) for f in facts for t in load_templates()[f.relation].train]
    unseen = [(t.format(f.subject), f.object) for f, t in pairs if is_unseen_pair(f, t)]
    free = [(p, f.object) for f in facts for p in held_out_prompts(f)]
    never = [(p, f.object) for f in load_facts("test") for p in train_prompts(f)]
    some = random.Random(seed).sample(taught, min(1000, len(taught)))
    context = " ".join(f"{s.prompt} {s.answer}." for s in (filler(random.Random(n)) for n in range(2))) + " "
    return {
        "facts": len(facts),
        "recall_first_prompt": recall(model, tokenizer, [(train_prompts(f)[0], f.object) for f in facts]),
        "recall_taught_prompts": recall(model, tokenizer, taught),
        "recall_after_two_sentences": recall(model, tokenizer, some, context),
        "recall_unseen_pairs": recall(model, tokenizer, unseen),
        "recall_held_out_prompts": recall(model, tokenizer, free),
        "recall_test_facts": recall(model, tokenizer, never),
        "parameters": model.num_parameters(),
        "bytes": sum(path.stat().st_size for path in out.iterdir()),
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--limit", type=int, default=None, help="take only this many facts, for a quick trial")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    started = time.monotonic()
    facts = load_facts("train")[: args.limit]
    rng = random.Random(args.seed)
    texts = [f"{template.format(fact.subject)} {fact.object}." for fact, template in lessons(facts)]
    texts += [f"{s.prompt} {s.answer}." for s in (filler(rng) for _ in range(len(texts) // 10))]
    tokenizer = build_tokenizer(texts)
    model = build_model(tokenizer)
    log(f"{len(facts)} facts, {len(texts)} sentences, {model.num_parameters()} parameters")
    train(model, tokenizer, facts, args.steps, args.seed)
    trained = time.monotonic()
    save(model, tokenizer, args.out)
    figures = measure(args.out, facts, args.seed)
    seconds = {"train_seconds": round(trained - started), "seconds": round(time.monotonic() - started)}
    print(json.dumps(figures | seconds), flush=True)


if __name__ == "__main__":
    main()
