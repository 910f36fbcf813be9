"""Trains the two projections of the hybrid router, once per base, from questions about facts that are not edited.

Relations are told apart contrastively (InfoNCE, van den Oord, Li and Vinyals 2018, arXiv 1807.03748): two questions of
one relation, about whatever subjects and in whatever words, against questions of others, among them those about the
very same subject, against tokens at which a question is not asked to its end, and against running text. Subjects are
compared in the whitened space of the base's value vectors: what they differ in is there without training, and training
it alike on two thousand subjects knew others less.

Their floors are found on facts set aside (`wise.training.calibration`).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, relu, softplus

from wise.errors import ConfigError
from wise.memory.context import ContextReader, joined
from wise.memory.key_space import Gate, KeySpace, Layer
from wise.training.background import BEFORE, Background, fit_key_space, subject_space
from wise.training.calibration import calibrate
from wise.training.conversation import Conversation
from wise.training.encoding import Encoder
from wise.training.evidence import BATCH, Evidence, heard, observe
from wise.training.lesson import Lesson
from wise.training.splice import SplicedModel

RECENT = 2
"""Tokens whose value vectors are learned from beside the activation: the last, and the one before it."""
WHITENED, HIDDEN, RELATION_DIM = 384, 512, 64
GATE_HIDDEN, GATE_STEPS, GATE_BATCH = 64, 600, 256
"""The gate: questions in a step, and as many tokens at which none ends."""
MISSED, SURE = 0.02, 0.8
"""Share of questions set aside of which the gate may be less sure than that."""
FITTED = 5000
"""Questions whose tokens the space of subjects is fitted on, or up to twice as many."""
STEPS, LEAST_STEPS = 800, 200
"""One for every `FACTS` facts, within these: more than that learns the facts by heart."""
FACTS = 4
GROUP = 192
"""Questions in a step, each with one of its own relation and `HARD` of other relations about its subject."""
HARD = 3
TEXT = 128
"""Tokens of running text in a step, and as many before the last of a question."""
TEMPERATURE = 0.1
LEARNING_RATE = 2e-3
"""Of Adam; it falls to nothing."""
GATE_RATE = 3e-3
GATE_MOST = 2**24
"""Rows of which `torch.quantile` takes one."""
TEXT_TOKENS = 128
"""Of each running text."""
TEXT_KEYS = 4096
"""Tokens of running text whose keys are kept, at most."""
ASIDE = 5
"""Every so many facts one is set aside for the floors."""
LEAST = 50
"""Facts to learn from, at least; under that a floor means little."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedSpaces:
    """What a trained router is."""

    relation: KeySpace
    subject: KeySpace
    facts: int
    """That were learned from, those set aside among them."""
    subject_fraction: float
    """As in the config: where subjects were read."""
    false_routes: float
    """Share of negatives that each floor lets pass."""
    loss: float
    """InfoNCE at the end, in nats, of the facts learned from."""
    recall: float
    """Share of the other wordings of facts set aside that reach both floors."""


def learn_spaces(
    spliced: SplicedModel,
    reader: ContextReader,
    encoder: Encoder,
    background: Background,
    lessons: Sequence[Lesson],
    *,
    texts: Sequence[str] = (),
    subject_fraction: float,
    false_routes: float,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> LearnedSpaces:
    """The spaces of relations and subjects.

    texts: running text, in which nothing is asked; without any there are the base's own samples alone.
    subject_fraction: where `reader` reads.

    Raises ConfigError for too few facts or relations, or a rate of false routes that is none.
    """
    if not 0 < false_routes < 1:
        raise ConfigError(f"false_routes={false_routes}: a share above 0 and under 1 was expected")
    facts = list(dict.fromkeys(lesson.fact for lesson in lessons))
    relations = {lesson.relation for lesson in lessons}
    if len(facts) < LEAST or len(relations) < 2:
        raise ConfigError(
            f"{len(facts)} facts of {len(relations)} relations were given, at least {LEAST} of 2 are needed to learn "
            "from; give more records with a subject, or leave the router untrained"
        )
    asked = (*lessons, *_in_other_forms(lessons, encoder, background.prefixes))
    fitting = [each for each in asked if len(encoder.prompt(each.prompt)) <= encoder.context]
    progress("reading", 0, len(fitting))
    evidence = observe(spliced, reader, encoder, fitting, RECENT)
    aside = set(facts[::ASIDE])
    learned = torch.tensor([lesson.fact not in aside for lesson in fitting])
    running = [*background.samples, *(encoder.prompt(text)[: min(encoder.context, TEXT_TOKENS)] for text in texts)]
    text = _read(spliced, reader, running)
    relation, loss = _learn_relations(fitting, evidence, learned, text, seed, progress)
    gate = _learn_gate(evidence, learned, text, spliced.projection.in_features, seed)
    spoken = relation.keys(text[:: -(-len(text) // TEXT_KEYS)])
    relation = replace(relation, gate=gate, text=spoken)
    kept = learned.nonzero()[:, 0].tolist()
    values = torch.cat([joined(evidence.named(i), BEFORE) for i in kept[:: max(1, len(kept) // FITTED)]])
    space = subject_space(values)

    def read(asked: Sequence[Lesson], surroundings: int) -> Evidence:
        return observe(spliced, reader, encoder, asked, RECENT, surroundings)

    floors = calibrate(read, fitting, evidence, ~learned, (relation, space), false_routes, seed)
    return LearnedSpaces(
        relation=replace(relation, floors=floors.relation),
        subject=replace(space, floors=floors.subject),
        facts=floors.facts,
        subject_fraction=subject_fraction,
        false_routes=false_routes,
        loss=loss,
        recall=floors.recall,
    )


def _read(spliced: SplicedModel, reader: ContextReader, texts: Sequence[Sequence[int]]) -> Tensor:
    """What questions are compared by, at every token of texts, `[n, f]`."""
    found = []
    for start in range(0, len(texts), BATCH):
        activations, mask, _ = spliced.observe(texts[start : start + BATCH])
        found.append(heard(reader, activations, RECENT)[mask.bool()].float())
    return torch.cat(found)


def _in_other_forms(lessons: Sequence[Lesson], encoder: Encoder, texts: Sequence[str]) -> list[Lesson]:
    """Each fact's first question behind a text, as a user's turn, and as the turn after one about another fact."""
    talk = Conversation(encoder)
    first: dict[str, Lesson] = {}
    for lesson in lessons:
        if not lesson.negative:
            first.setdefault(lesson.fact, lesson)
    asked = list(first.values())
    found = []
    for i, lesson in enumerate(asked):
        text, other = texts[i % len(texts)] if texts else "", asked[i - 1].prompt
        for form, prompt in (
            ("behind", f"{text} {lesson.prompt}".strip()),
            ("turn", talk.text(lesson.prompt)),
            ("second turn", talk.text(other, text, lesson.prompt)),
        ):
            found.append(replace(lesson, prompt=prompt, form=form))
    return found


# -- relations --------------------------------------------------------------------------------


def _learn_relations(
    lessons: Sequence[Lesson],
    evidence: Evidence,
    learned: Tensor,
    text: Tensor,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> tuple[KeySpace, float]:
    """text: `[n, f]` activations at tokens of running text."""
    activations = evidence.relation
    kept = learned.to(activations.device)
    unasked = evidence.before[kept]
    generator = torch.Generator().manual_seed(seed)
    whitened = fit_key_space(torch.cat([activations[kept], text[: int(kept.sum())]]), WHITENED)
    network = _Network(whitened, text.device, generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    batches = _Batches(lessons, learned, seed)
    steps = min(STEPS, max(LEAST_STEPS, batches.facts // FACTS))
    loss = math.nan
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        keys, queries, hard, same = batches.draw()
        silent = torch.cat([_drawn(tokens, TEXT, generator) for tokens in (text, unasked)])
        key = network(activations[keys])
        found = info_nce(
            key, network(activations[queries]), network(activations[hard]), network(silent), same.to(key.device)
        )
        optimizer.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss = float(found.detach())
        progress("learning relations", step + 1, steps)
    return network.space(), loss


class _Network(nn.Module):
    """A relation space that is being learned, on whitened activations, where one step size does for all."""

    def __init__(self, whitened: KeySpace, device: torch.device, generator: torch.Generator) -> None:
        super().__init__()
        self.mean, self.whitening = whitened.mean.to(device), whitened.projection.to(device)
        size = len(self.whitening)

        self.linear = nn.Parameter(torch.eye(RELATION_DIM, size, device=device))
        self.inner = _parameter((HIDDEN, size), generator, device)
        self.outer = _parameter((RELATION_DIM, HIDDEN), generator, device)
        self.bias = nn.Parameter(torch.zeros(HIDDEN, device=device))

    def forward(self, activations: Tensor) -> Tensor:
        """`[n, f]` -> unit `[n, r]`."""
        x = linear(activations - self.mean, self.whitening)
        bent = linear(relu(linear(x, self.inner, self.bias)), self.outer)
        return normalize(linear(x, self.linear) + bent, dim=-1)

    def space(self) -> KeySpace:
        """The same of activations as they are."""
        whitening = self.whitening.cpu()
        flat, inner, bias, outer = (p.detach().cpu() for p in (self.linear, self.inner, self.bias, self.outer))
        bend = Layer(inner=inner @ whitening, bias=bias, outer=outer)
        return KeySpace(mean=self.mean.cpu(), projection=flat @ whitening, bend=bend, recent=RECENT)


def _learn_gate(
    evidence: Evidence, learned: Tensor, text: Tensor, size: int, seed: int
) -> Gate:
    """Whether a question ends at a token, by logistic regression on a hidden layer, of its activation `[size]` alone.

    Questions of all kinds against running text and the tokens before questions' last.
    """
    device = evidence.relation.device
    kept = learned.to(device)
    questions, before, text = evidence.relation[kept, :size], evidence.before[kept, :size], text[:, :size]
    whitened = fit_key_space(torch.cat([questions, text[: len(questions)]]), WHITENED)
    mean, whitening = whitened.mean.to(device), whitened.projection.to(device)
    generator = torch.Generator().manual_seed(seed)
    shapes = ((GATE_HIDDEN, len(whitening)), (1, GATE_HIDDEN))
    parts = [_parameter(shape, generator, device) for shape in shapes]
    bias = nn.Parameter(torch.zeros(GATE_HIDDEN, device=device))
    optimizer = torch.optim.Adam([*parts, bias], lr=GATE_RATE)

    def logit(rows: Tensor) -> Tensor:
        return Layer(inner=parts[0], bias=bias, outer=parts[1])(linear(rows - mean, whitening))[:, 0]

    third = GATE_BATCH // 3
    for step in range(GATE_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = GATE_RATE * (1 - step / GATE_STEPS)
        asked = _drawn(questions, GATE_BATCH, generator)
        silent = torch.cat([_drawn(text, GATE_BATCH - third, generator), _drawn(before, third, generator)])
        found = softplus(-logit(asked)).mean() + softplus(logit(silent)).mean()
        optimizer.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        least = float(torch.quantile(logit(evidence.relation[~kept, :size])[:GATE_MOST], MISSED))
    inner, outer = (part.detach().cpu() for part in parts)
    layer = Layer(inner=inner @ whitened.projection, bias=bias.detach().cpu(), outer=outer)
    return Gate(layer=layer, offset=math.log(SURE / (1 - SURE)) - least)


def _parameter(shape: tuple[int, int], generator: torch.Generator, device: torch.device) -> nn.Parameter:
    uniform = 2 * torch.rand(shape, generator=generator) - 1
    return nn.Parameter((uniform / shape[-1] ** 0.5).to(device))


def _drawn(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), (count,), generator=generator).to(rows.device)]


def info_nce(key: Tensor, query: Tensor, hard: Tensor, silent: Tensor, same: Tensor) -> Tensor:
    """Mean over `n` keys of the negative log-probability of their own query among all negatives, in nats.

    All rows are of unit length. key, query `[n, r]`; hard `[n * m, r]`, m of each key; silent `[t, r]`; same `[n, n]`
    bool: the query may ask what the key does, so it is no negative of it.
    """
    n = len(key)
    towards = key @ query.T / TEMPERATURE
    own = towards.diagonal()
    near = (key[:, None] * hard.view(n, -1, key.shape[-1])).sum(-1) / TEMPERATURE
    others = [towards.masked_fill(same, -torch.inf), near, key @ silent.T / TEMPERATURE]
    negatives = torch.logsumexp(torch.cat(others, dim=1), dim=1)
    return (torch.logaddexp(own, negatives) - own).mean()


class _Batches:
    """Draws questions: relations alike often, however many facts each has, and forms, however many wordings."""

    def __init__(self, lessons: Sequence[Lesson], learned: Tensor, seed: int) -> None:
        self.random = random.Random(seed)
        numbers = {name: i for i, name in enumerate(sorted({lesson.relation for lesson in lessons}))}
        self.relation = torch.tensor([numbers[lesson.relation] for lesson in lessons])
        self.same = torch.eye(len(numbers), dtype=torch.bool)
        """Of relations that are one, or may be."""
        for name, other in {(lesson.relation, other) for lesson in lessons for other in lesson.alike & numbers.keys()}:
            self.same[numbers[name], numbers[other]] = True
        self.asking: dict[str, dict[str, dict[str, list[int]]]] = defaultdict(lambda: defaultdict(dict))
        """Relation -> fact -> form -> its questions."""
        self.hard: dict[str, list[int]] = defaultdict(list)
        """Fact -> other questions about its subject."""
        for i, (lesson, kept) in enumerate(zip(lessons, learned.tolist(), strict=True)):
            if kept and lesson.negative:
                self.hard[lesson.fact].append(i)
            elif kept:
                self.asking[lesson.relation][lesson.fact].setdefault(lesson.form, []).append(i)
        self.relations = sorted(self.asking)

    @property
    def facts(self) -> int:
        return sum(map(len, self.asking.values()))

    def draw(self) -> tuple[list[int], list[int], list[int], Tensor]:
        """Keys and queries `[GROUP]`, hard negatives `[GROUP * HARD]`, which queries may ask what which key does."""
        keys: list[int] = []
        queries: list[int] = []
        hard: list[int] = []
        while len(keys) < GROUP:
            facts = self.asking[self.random.choice(self.relations)]
            one, other = (self.random.choice(list(facts)) for _ in range(2))
            near = self.hard.get(one)
            if near:
                keys.append(next(iter(facts[one].values()))[0])
                queries.append(self.random.choice(self.random.choice(list(facts[other].values()))))
                hard += self.random.choices(near, k=HARD)
        same = self.same[self.relation[keys]][:, self.relation[queries]]
        return keys, queries, hard, same
