"""Rows that join and leave a batch are answered as alone: every architecture, with and without a memory."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from tiny import ARCHITECTURES, BATCH, EOS, wrap_tiny

from wise.memory.batched_memory import BatchedMemory
from wise.memory.side_memory import SideMemory
from wise.serving.engines import Delta, EngineError, GenerationRequest, MemoryHandle
from wise.serving.engines.grammar import Grammars
from wise.serving.engines.local import Batch, LocalEngine, Prefill, Runner
from wise.serving.engines.sequence import Detokenizer
from wise.serving.metrics import Metrics
from wise.serving.settings import Settings
from wise.training.generation import greedy

LENGTHS = (9, 6, 12)
"""New tokens of the rows of `BATCH`: they leave at different times."""
BASE = MemoryHandle(version=0, namespace=None)


@dataclass(eq=False)
class Member:
    memory: SideMemory | None
    size: int
    new: list[int] = field(default_factory=list)


def together(runner: Runner, memory: SideMemory | None, chunk: int, late: int) -> list[list[int]]:
    """The rows of `BATCH`. The first begins alone; the others join while it is read or decoded, `late` steps later."""
    members = [Member(memory, size) for size in LENGTHS]
    batch, prefill, steps = Batch(runner), Prefill(runner, chunk), 0
    while steps <= late or len(batch) or len(prefill.batch):
        if steps in (0, late):
            rows = slice(0, 1) if steps == 0 else slice(1, None)
            prefill.add(members[rows], BATCH[rows])
        if len(prefill.batch):
            logits = prefill.step()
            assert logits.shape[1] == 1
            if complete := prefill.complete:
                part = prefill.take(complete)
                advance(part, logits[complete, -1])
                batch.join(part)
        if len(batch):
            ids = torch.tensor([[member.new[-1]] for member in batch.members])
            advance(batch, batch.feed(ids, torch.ones_like(ids))[:, -1])
        steps += 1
    return [member.new for member in members]


def advance(batch: Batch, logits: torch.Tensor) -> None:
    for member, token in zip(batch.members, logits.argmax(-1).tolist(), strict=True):
        member.new.append(token)
    batch.keep([i for i, member in enumerate(batch.members) if len(member.new) < member.size])


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
    for chunk, late in ((1, 1), (1, 3), (7, 2), (512, 3)):
        assert together(runner, memory, chunk, late) == alone
    if memory is not None:
        assert together(runner, None, 512, 3) != alone  # without the memory they are answered otherwise


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_short_prompt_does_not_wait_for_a_long_one(steps_before: int) -> None:
    """The short one comes `steps_before` steps later."""
    wrapped = wrap_tiny("llama", None)
    runner = Runner(wrapped.model, BatchedMemory(None))
    long, short, prefill = Member(None, 1), Member(None, 1), Prefill(runner, 8)
    prefill.add([long], [[5] * 100])
    for _ in range(steps_before):
        prefill.step()
    [length] = prefill.done
    prefill.add([short], [[6, 7, 8, 9, 10]])
    steps = 0
    while not prefill.complete:
        width = prefill.batch.mask.shape[1]
        prefill.step()
        steps += 1
        assert 2 * (prefill.batch.mask.shape[1] - width) <= 8, "a step reads more than it may"
    assert prefill.take(prefill.complete).members == [short] and steps == 2
    assert prefill.batch.members == [long] and prefill.done == [length + 8]


def test_the_engine_computes_with_its_threads_and_others_with_one() -> None:
    """A second team of OpenMP threads would make the engine's threads sleep between two operations."""
    own_threads, threads_seen, wrapped = torch.get_num_threads(), set[int](), wrap_tiny("llama", None)
    settings = Settings(store="unused", threads=2)
    request = GenerationRequest(prompt=(5, 6), handle=BASE, max_new_tokens=2)
    engine = LocalEngine(wrapped, settings, Metrics(), Grammars(wrapped.tokenizer, wrapped.encoder.stops))
    wrapped.model.register_forward_hook(lambda *_: threads_seen.add(torch.get_num_threads()))
    engine.start()

    async def ask() -> None:
        job = engine.submit([request], seconds=60)
        while (await asyncio.wait_for(job.deltas.get(), 60)).finish is None:
            pass

    try:
        asyncio.run(ask())
        with ThreadPoolExecutor(1) as later:
            assert threads_seen == {2} and later.submit(torch.get_num_threads).result() == 1
    finally:
        engine.close()
        torch.set_num_threads(own_threads)


@pytest.mark.parametrize("fails", [True, False])
def test_an_answer_whose_end_cannot_be_spelled_fails_and_is_not_waited_for(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_: Detokenizer) -> str:
        if fails:
            raise ValueError("these bytes are no text")
        return ""

    monkeypatch.setattr(Detokenizer, "end", end)
    wrapped = wrap_tiny("llama", None)
    grammars = Grammars(wrapped.tokenizer, wrapped.encoder.stops)
    engine = LocalEngine(wrapped, Settings(store="unused"), Metrics(), grammars)
    engine.start()

    async def last() -> Delta | Exception:
        job = engine.submit([GenerationRequest(prompt=(5, 6), handle=BASE, max_new_tokens=1)], seconds=60)
        return await asyncio.wait_for(job.deltas.get(), 60)

    try:
        deltas = asyncio.run(last())
        assert isinstance(deltas, EngineError) if fails else deltas.finish is not None  # type: ignore[union-attr]
    finally:
        engine.close()


class Letters:
    """A tokenizer of bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("plain words", (), "plain words"),
        ("broken \u20ac sign", (), "broken \u20ac sign"),
        ("one stop two", ("stop",), "one "),
        ("almost a sto", ("stop",), "almost a sto"),
        ("ststop", ("stop",), "st"),
        ("a b c", ("c", "b"), "a "),
    ],
)
def test_text_is_sent_when_it_is_settled(text: str, stops: tuple[str, ...], expected: str) -> None:
    detokenizer = Detokenizer(Letters(), list(b"prompt"), stops)  # type: ignore[arg-type]
    texts = []
    for token in text.encode():
        texts.append(detokenizer.add(token))
        assert "\ufffd" not in texts[-1]
        if detokenizer.stopped:
            break
    assert "".join(texts) + detokenizer.end() == expected
    assert all(stop not in "".join(texts) for stop in stops)
