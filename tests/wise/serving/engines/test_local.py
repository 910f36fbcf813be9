"""Rows that join and leave a batch say what they say alone: every architecture, with and without a memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from tiny import ARCHITECTURES, BATCH, EOS, wrap_tiny

from wise.memory.batched_memory import BatchedMemory
from wise.memory.side_memory import SideMemory
from wise.serving.engines.local import Batch, Prefill, Runner
from wise.serving.engines.sequence import Detokenizer, Sampler, logprobs
from wise.training.generation import greedy

LENGTHS = (9, 6, 12)
"""New tokens of the rows of `BATCH`: they leave at unlike times."""


@dataclass(eq=False)
class Member:
    memory: SideMemory | None
    wanted: int
    new: list[int] = field(default_factory=list)


def together(runner: Runner, memory: SideMemory | None, chunk: int) -> list[list[int]]:
    """The rows of `BATCH`, of which the first begins alone and the others join it while it decodes."""
    members = [Member(memory, wanted) for wanted in LENGTHS]
    batch: Batch = Batch(runner)
    waiting = [(members[:1], BATCH[:1]), (members[1:], BATCH[1:])]
    prefill: Prefill | None = None
    while waiting or prefill or len(batch):
        if prefill is None and waiting and (not len(batch) or len(members[0].new) >= 3):
            rows, prompts = waiting.pop(0)
            prefill = Prefill(runner, rows, prompts, chunk)
        if prefill is not None:
            logits = prefill.step()
            if logits is not None:
                advance(prefill.batch, logits)
                batch.join(prefill.batch)
                prefill = None
        if len(batch):
            ids = torch.tensor([[member.new[-1]] for member in batch.members])
            advance(batch, batch.feed(ids, torch.ones_like(ids)))
    return [member.new for member in members]


def advance(batch: Batch, logits: torch.Tensor) -> None:
    for member, token in zip(batch.members, logits.argmax(-1).tolist(), strict=True):
        member.new.append(token)
    batch.keep([i for i, member in enumerate(batch.members) if len(member.new) < member.wanted])


@pytest.mark.parametrize("mode", [None, "retrieve", "hybrid"])
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_rows_say_what_they_say_alone(model_type: str, mode: str | None) -> None:
    wrapped = wrap_tiny(model_type, mode)
    memory = wrapped.layer.memory
    alone = [
        greedy(wrapped.model, [prompt], stops={EOS + 1000}, max_new_tokens=length)[0]
        for prompt, length in zip(BATCH, LENGTHS, strict=True)
    ]
    batched = BatchedMemory(None if wrapped.inputs is None else wrapped.inputs.sequences)
    wrapped.layer.memory = batched
    runner = Runner(wrapped.model, batched)
    for chunk in (1, 7, 512):
        assert together(runner, memory, chunk) == alone
    if memory is not None:
        assert together(runner, None, 512) != alone  # without it they say something else


def test_a_row_draws_by_its_own_seed() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    best = int(logits.argmax())

    def drawn(seed: int | None, temperature: float = 1.0, top_p: float = 1.0) -> list[int]:
        sampler = Sampler(temperature=temperature, top_p=top_p, seed=seed)
        return [sampler.draw(logits, best) for _ in range(30)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)
    assert set(drawn(1, temperature=0)) == {best} == set(drawn(1, top_p=1e-6))
    told = logprobs(logits, 7, 3)
    assert told.top[0][0] == best and len(told.top) == 3
    assert told.logprob == pytest.approx(float(torch.log_softmax(logits, -1)[7]))


class Letters:
    """A tokenizer of bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("text", "stops", "said"),
    [
        ("plain words", (), "plain words"),
        ("broken \u20ac sign", (), "broken \u20ac sign"),
        ("one stop two", ("stop",), "one "),
        ("almost a sto", ("stop",), "almost a sto"),
        ("ststop", ("stop",), "st"),
        ("a b c", ("c", "b"), "a "),
    ],
)
def test_text_is_sent_when_it_is_settled(text: str, stops: tuple[str, ...], said: str) -> None:
    detokenizer = Detokenizer(Letters(), list(b"prompt"), stops)  # type: ignore[arg-type]
    sent = []
    for token in text.encode():
        sent.append(detokenizer.add(token))
        assert "\ufffd" not in sent[-1]
        if detokenizer.stopped:
            break
    assert "".join(sent) + detokenizer.end() == said
    assert all(stop not in "".join(sent) for stop in stops)
