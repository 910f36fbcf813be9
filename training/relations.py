"""Teaching a sentence encoder what a relation is, by contrast between the relations of one subject.

Two wordings of one fact are to agree; their rivals are others of the same batch (InfoNCE, van den Oord et al., arXiv
1807.03748, in both directions). A batch has three groups of rivals. Two are read as the router reads a question that
names an edit's subject, with "this" in its place: relations of one kind of subject, which are near to one another, and
relations of any kind, which may have one wording in common. The third is read as it stands, as a question that names
no edited subject: there the same relation of other subjects is a rival as well. A part of the relations is never
taught; on it the thresholds are set and the figures are measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from wise.router.encoder import SCALE, dequantized, quantized
from wise.router.subjects import PLACEHOLDER
from wise.router.turns import is_question

SIZE = 128
"""r: numbers in a vector, so that four keys in half precision take 1 KiB."""
TAUGHT_BLOCKS = 4
"""Last blocks of the encoder that are taught."""
TEMPERATURE = 0.05
LEARNING_RATE = 5e-5
"""Of `USUAL_STEPS`; fewer are larger ones."""
HEAD_RATE = 3e-4
USUAL_STEPS = 1000
WARM_UP = 20
KIND_RIVALS = 22
"""Relations of one kind of subject that a masked question is told from at once."""
ANY_RIVALS = 64
"""The same of any kind."""
SAYS = (1 / 3, 2 / 3)
"""How much an edit's question, and the question with the answer, have to say in which relation it is of."""
ANSWERED = 0.8
"""Share of masked wordings that are read with an answer on one side, as an edit is."""
READ_AT_ONCE = 32
"""Texts of one batch of the encoder."""
MAX_TOKENS = 96
HELD_OUT = 6
"""One relation in so many is never taught."""
FALSE_POSITIVE_RATE = 0.05
"""Share of other questions about a subject that the threshold lets pass."""
SENTENCE_RATE = 0.02
"""The same of unfinished sentences. Plain text asks at many places, and seldom for what was edited."""
NAMELESS_RATE = 0.02
"""Share of other questions that the threshold of an edit without a subject lets pass."""
UNNAMED_RATE = 0.0005
"""Share of questions about other subjects that the threshold without a name lets pass."""
MEASURING = "measuring held-out relations"
QUESTION_FRAMES = (
    *["{}"] * 6,
    "Can you tell me: {}",
    "Please tell me. {}",
    "{} Thanks!",
    "Quick question: {}",
    "Question: {} Answer:",
    "I like long walks. {}",
    "Hi! {}",
    "I am filling in a form: {}",
    "{} I keep forgetting.",
    "{} Please answer briefly.",
    "I'm filling in a form and one box is still empty. {}",
    "My friend and I argued about it yesterday. {}",
    "For a quiz at work I need one more answer: {}",
    "hey, {}",
)
SENTENCE_FRAMES = (*["{}"] * 5, "I like long walks. {}", "It is said that {}", "As you may know, {}")

Stock = Mapping[str, Mapping[str, Any]]
"""As `questions.toml` has it: kinds of subject, their relations, and the wordings of each."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How well wordings of relations that were never taught are told apart, with the thresholds found on them."""

    threshold: float
    sentence_threshold: float
    unnamed_threshold: float
    nameless_threshold: float
    recall: float
    """Share of rewordings that reach the threshold which `FALSE_POSITIVE_RATE` of the other questions reach."""
    sentence_recall: float
    """The same of unfinished sentences, with `SENTENCE_RATE`."""
    unnamed_recall: float
    """Share of rewordings that reach the threshold without a name."""


def wordings(relation: Mapping[str, Sequence[str]]) -> list[str]:
    """All wordings of a relation, with `{}` for the subject."""
    return [*relation["wordings"], *relation.get("requests", ())]


def put(subject: str, wording: str) -> str:
    """The wording with the subject in it, large where it begins the sentence."""
    own = subject[0].upper() + subject[1:] if wording.startswith("{}") else subject
    return wording.replace("{}", own)


def stated(text: str, answer: str) -> str:
    """A wording and its answer as one statement. The answer often tells what a short wording asks for: "She is from",
    with a city or with a country."""
    return f"{text} {answer.rstrip('.')}."


def split(stock: Stock, seed: int = 7) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Relations of each kind: those that are taught, and those that are held out."""
    order, taught, held_out = random.Random(seed), {}, {}
    for kind in stock["subjects"]:
        names = sorted(stock[kind])
        order.shuffle(names)
        count = max(2, len(names) // HELD_OUT)
        held_out[kind], taught[kind] = names[:count], names[count:]
    return taught, held_out


class Taught(torch.nn.Module):
    """An encoder with a projection behind it."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        size = int(model.config.hidden_size)
        start = torch.linalg.qr(torch.randn(size, SIZE)).Q.T.contiguous().to(model.device)
        self.projection = torch.nn.Parameter(start)
        last = int(model.config.num_hidden_layers) - TAUGHT_BLOCKS
        self.names = [n for n, _ in model.named_parameters() if _block(n) >= last]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.names)
        self._before = {n: p.detach().clone() for n, p in model.named_parameters() if n in self.names}

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Unit `[n, r]`. Texts of like length are read together: padding costs as much as text."""
        ids = self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        parts = [order[start : start + READ_AT_ONCE] for start in range(0, len(order), READ_AT_ONCE)]
        vectors = torch.cat([self._read([ids[i] for i in part]) for part in parts])
        return vectors[torch.tensor(order).argsort()]

    def _read(self, ids: list[list[int]]) -> Tensor:
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.projection.device)
        states = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        return normalize(linear((states * mask).sum(1) / mask.sum(1), self.projection), dim=-1)

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Ends the teaching: what was taught, as it is kept. The network is then what is read back from it."""
        self.eval()
        own, found = dict(self.model.named_parameters()), {"projection": self.projection.detach()}
        for name in self.names:
            found[name], found[f"{name}{SCALE}"] = quantized(own[name] - self._before[name])
            own[name].copy_(self._before[name] + dequantized(found[name], found[f"{name}{SCALE}"]))
        return found


def teach(
    model: Any, tokenizer: Any, stock: Stock, *, known: Stock, steps: int, seed: int, progress: Progress
) -> tuple[dict[str, Tensor], Figures]:
    """Teaches `model`, a BERT that is changed, on its device, on the questions of `stock`.

    known: relations whose wordings edits are fitted on, whichever were taught.

    Returns what `SentenceEncoder` reads, and the figures on the relations that were not taught. The global random state
    is not touched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        taught, held_out = split(stock)
        network, order = Taught(model, tokenizer), random.Random(seed)
        _descend(network, stock, taught, order, steps, progress)
        tensors = network.finish()
        progress(MEASURING, 0, 1)
        centres = relation_centres(network, known).half()  # as they are kept
        figures = measure(network, stock, held_out, centres.float())
        progress(MEASURING, 1, 1)
    thresholds = torch.tensor(
        [
            figures.threshold,
            figures.sentence_threshold,
            figures.unnamed_threshold,
            figures.nameless_threshold,
        ],
        dtype=torch.float64,
    )
    found = tensors | {"thresholds": thresholds, "relation_centres": centres}
    return {name: tensor.cpu() for name, tensor in found.items()}, figures


def _descend(
    network: Taught, stock: Stock, taught: Mapping[str, list[str]], order: random.Random, steps: int, progress: Progress
) -> None:
    parts = [p for p in network.model.parameters() if p.requires_grad]
    rate = LEARNING_RATE * (USUAL_STEPS / steps) ** 0.4
    optimizer = torch.optim.AdamW(
        [{"params": parts, "lr": rate}, {"params": [network.projection], "lr": HEAD_RATE}], weight_decay=0.01
    )
    slower = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * max(0.1, 1 - step / steps)
    )
    network.train()
    for step in range(steps):
        loss = _loss(network, *_batch(stock, taught, order))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*parts, network.projection], 1.0)
        optimizer.step()
        slower.step()
        progress(f"teaching relations, loss {float(loss.detach()):.2f}", step + 1, steps)


def _batch(
    stock: Stock, taught: Mapping[str, list[str]], order: random.Random
) -> tuple[list[str], list[str], list[int]]:
    """Pairs of wordings, and the group of rivals that each pair is in."""
    kinds = list(taught)
    near, unmasked = order.choices(kinds, [len(taught[kind]) ** 0.5 for kind in kinds], k=2)
    any_kind = [(kind, relation) for kind in kinds for relation in taught[kind]]
    groups = (
        [(PLACEHOLDER, near, name) for name in _few(order, taught[near], KIND_RIVALS)],
        [(PLACEHOLDER, kind, name) for kind, name in _few(order, any_kind, ANY_RIVALS)],
        [
            (subject, unmasked, name)
            for subject in order.sample(list(stock["subjects"][unmasked]), 3)
            for name in _few(order, taught[unmasked], 6)
        ],
    )
    first, second, group = list[str](), list[str](), list[int]()
    for number, rivals in enumerate(groups):
        for subject, kind, name in rivals:
            one, other = (framed(put(subject, text), order) for text in order.sample(wordings(stock[kind][name]), 2))
            answers = stock[kind][name].get("answers")
            if subject == PLACEHOLDER and answers and order.random() < ANSWERED:
                other = stated(other, order.choice(answers))
            first.append(one)
            second.append(other)
            group.append(number)
    return first, second, group


def _few(order: random.Random, given: Sequence[Any], count: int) -> list[Any]:
    """So many of them, or all where they are fewer."""
    return order.sample(given, min(count, len(given)))


def framed(text: str, order: random.Random) -> str:
    """The question as somebody might type it."""
    if text[-1] not in "?.":
        return order.choice(SENTENCE_FRAMES).format(text)
    text = order.choice(QUESTION_FRAMES).format(text)
    chance = order.random()
    if chance < 0.15:
        text = text.lower()
    return text.rstrip("?.!") if chance > 0.9 else text


def _loss(network: Taught, first: list[str], second: list[str], group: list[int]) -> Tensor:
    vectors = network([*first, *second])
    groups = torch.tensor(group, device=vectors.device)
    scores = vectors[: len(first)] @ vectors[len(first) :].T / TEMPERATURE
    scores = scores.masked_fill(groups[:, None] != groups[None], -1e4)
    same = torch.arange(len(first), device=vectors.device)
    return (cross_entropy(scores, same) + cross_entropy(scores.T, same)) / 2


@torch.inference_mode()
def measure(
    network: Callable[[list[str]], Tensor], stock: Stock, held_out: Mapping[str, list[str]], centres: Tensor
) -> Figures:
    """On relations that were never taught, each drawn four times.

    centres: `[n, r]` of the relations that an edit is compared with.
    """
    order = random.Random(7)
    reached = {True: list[float](), False: list[float]()}  # of questions, and of sentences
    others = {True: list[float](), False: list[float]()}
    whole, apart = list[float](), list[float]()
    for kind, relations in held_out.items():
        subjects = list(stock["subjects"][kind])
        for relation in (each for each in relations for _ in range(4)):
            subject, elsewhere = order.sample(subjects, 2)
            own = wordings(stock[kind][relation])
            first, *more = order.sample(own, min(4, len(own)))
            names_ = order.sample([name for name in stock[kind] if name != relation], min(4, len(stock[kind]) - 1))
            rivals = [order.choice(wordings(stock[kind][name])) for name in names_]
            asked = put(PLACEHOLDER, first)
            keys = network([asked, *(stated(asked, answer) for answer in stock[kind][relation].get("answers", ())[:1])])
            keys = torch.cat([keys, centres[nearest_relation(keys, centres)][None]])
            for asking, scores in ((more, reached), (rivals, others)):
                found = (network([put(PLACEHOLDER, text) for text in asking]) @ keys.T).amax(-1).tolist()
                for text, score in zip(asking, found, strict=True):
                    scores[is_question(text)].append(score)
            texts = [put(subject, wording) for wording in (first, *more, *rivals)]
            vectors = network([*texts, *(put(elsewhere, wording) for wording in (first, *more))])
            alike = (vectors[1:] @ vectors[0]).tolist()
            whole, apart = whole + alike[: len(more)], apart + alike[len(more) :]
    thresholds = {
        asks: _reached_by(others[asks] or others[not asks], rate)
        for asks, rate in ((True, FALSE_POSITIVE_RATE), (False, SENTENCE_RATE))
    }
    recalls = {
        asks: float((torch.tensor(reached[asks] or reached[not asks]) >= thresholds[asks]).float().mean())
        for asks in thresholds
    }
    unnamed_threshold = _reached_by(apart, UNNAMED_RATE)
    return Figures(
        threshold=thresholds[True],
        sentence_threshold=thresholds[False],
        unnamed_threshold=unnamed_threshold,
        nameless_threshold=_reached_by(apart, NAMELESS_RATE),
        recall=recalls[True],
        sentence_recall=recalls[False],
        unnamed_recall=float((torch.tensor(whole) >= unnamed_threshold).float().mean()),
    )


def _reached_by(scores: Sequence[float], share: float) -> float:
    """The score that such a share of them reaches."""
    return float(torch.quantile(torch.tensor(scores), 1 - share))


def nearest_relation(vectors: Tensor, centres: Tensor) -> int:
    """Of `[n, r]` centres the one that an edit is of.

    vectors: `[2, r]` of its question, and of the question with the answer, which tells most; or `[1, r]`, the first.
    """
    weights = torch.tensor(SAYS[: len(vectors)], device=vectors.device)
    return int((centres @ (vectors.T @ weights)).argmax())


@torch.inference_mode()
def relation_centres(network: Callable[[list[str]], Tensor], stock: Stock) -> Tensor:
    """The mean vector of each relation's wordings, `[relations, r]` unit, in the order of `names`."""
    centres = []
    for kind, relation in names(stock):
        own = wordings(stock[kind][relation])
        few = random.Random(f"{kind} {relation}").sample(own, min(8, len(own)))
        centres.append(network([put(PLACEHOLDER, wording) for wording in few]).mean(0))
    return normalize(torch.stack(centres), dim=-1)


def names(stock: Stock) -> list[tuple[str, str]]:
    """Every relation of the stock as kind and name, in its order."""
    return [(kind, relation) for kind in stock["subjects"] for relation in stock[kind]]


def _block(name: str) -> int:
    """The number of the block that a parameter is of; -1 for others."""
    parts = name.split(".")
    return int(parts[parts.index("layer") + 1]) if "layer" in parts else -1
