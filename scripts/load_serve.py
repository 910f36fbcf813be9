"""Puts a service under load while edits stream into it, and looks whether anything is lost or late.

    python scripts/load_serve.py --clients 64 --edits 1000
    python scripts/load_serve.py --clients 8 --edits 40 --model FOLDER --chat    # a model that chats, asked in chats

Starts `wise serve` with a new store, on the loopback interface alone. Clients ask without a pause, streaming: questions
whose facts are edited meanwhile, decoded greedily, and long texts, drawn. In each of several rounds nothing is edited
for a while, and then a share of the edits comes in, with clients beside that ask for one preview after the other. So
both are measured at like sizes of the memory and beside like neighbours on the machine. Reported: failed requests and
previews, the time between two tokens of a stream with and without editing, edits a second and how long each took from
post to live, whether each answer is what exactly its version says (where no edit of the question is live in it and the
answer is not known to be the base's, that version is read from the store and asked), and the memory of the processes.
The last line is JSON. What is left when such a service is killed, `scripts/soak_serve.py` looks at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from service_process import Service

from wise.demo.facts import Fact, counterfactual, load_facts, train_prompts

BATCH = 20
LONG_TOKENS = 64
SAMPLED = 5.0
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Prompt:
    """What a client asks: a text that is completed, or a user's question in a chat."""

    text: str
    chat: bool

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    @property
    def field(self) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": self.text}]} if self.chat else {"prompt": self.text}


@dataclass
class ClientRecord:
    """What the clients received in one phase."""

    gaps: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[str, int, str]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 1),
            "requests": len(self.firsts),
            "failed": dict(self.failures),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "between_tokens_ms": _quantiles(self.gaps),
            "first_token_ms": _quantiles(self.firsts),
        }


def _summed(phases: list[ClientRecord]) -> ClientRecord:
    total = ClientRecord()
    for phase in phases:
        total.gaps += phase.gaps
        total.firsts += phase.firsts
        total.failures.update(phase.failures)
        total.tokens += phase.tokens
        total.seconds += phase.seconds
    return total


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [float("nan")]
    return {
        name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
    }


async def _post(service: Service, path: str, body: dict[str, Any]) -> Any:
    """A connection of its own: its reader, behind the head of the answer. Raises OSError for a bad status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {service.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    await writer.drain()
    status = (await reader.readline()).decode().split()
    while (await reader.readline()).strip():
        pass
    if status[1] not in ("200", "202"):
        text = await reader.read()
        writer.close()
        raise OSError(f"{status[1]} {text[:120]!r}")
    return reader, writer


async def _ask(service: Service, record: ClientRecord, prompt: Prompt, long: bool, seed: int) -> None:
    body: dict[str, Any] = {"model": service.name, "stream": True, "max_tokens": 24, "temperature": 0, **prompt.field}
    if long:
        body |= {"max_tokens": LONG_TOKENS, "temperature": 1.0, "seed": seed}
    start = last = time.perf_counter()
    first, text, version, done = True, "", -1, False
    reader, writer = await _post(service, prompt.path, body)
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        now = time.perf_counter()
        if line.startswith(b"data: [DONE]"):
            done = True
            break
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise OSError(chunk["error"]["message"])
        version = int(chunk["system_fingerprint"].removeprefix("version-"))
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content", "") if prompt.chat else choice["text"]
            if prompt.chat and not piece:
                continue  # the first part of a chat names the role, and the last one why it ends
            text += piece
            (record.firsts if first else record.gaps).append(now - (start if first else last))
            first, last = False, now
            record.tokens += 1
    writer.close()
    if not done:
        raise OSError("the stream broke off")
    if not long:
        record.answers.append((prompt.text, version, text))


async def _client(
    service: Service, record: ClientRecord, prompts: list[Prompt], number: int, stop: asyncio.Event
) -> None:
    order, turns = random.Random(number), count(1)
    while not stop.is_set():
        turn = next(turns)
        try:
            await _ask(service, record, order.choice(prompts), (turn + number) % 2 == 0, turn)
        except (OSError, ValueError, KeyError) as error:
            record.failures[str(error)[:120]] += 1
            await asyncio.sleep(0.05)


def wordings(fact: Fact, chat: bool) -> tuple[str, str]:
    """Two ways to ask for a fact: beginnings of a sentence, or questions."""
    *sentences, question = train_prompts(fact)
    if not chat:
        return sentences[0], sentences[1]
    question = question.removeprefix("Question: ").partition(" Answer:")[0]
    return question, f"Tell me: {question}"


def _edit(fact: Fact, prompt: str, seed: int = 0) -> dict[str, Any]:
    return {"prompt": prompt, "target": counterfactual(fact, seed=seed), "subject": fact.subject}


async def _phase(
    service: Service,
    prompts: list[Prompt],
    clients: int,
    seconds: float,
    memory: list[dict[str, float]],
    until: Any,
) -> ClientRecord:
    """Clients ask for so long, and until what is to be done meanwhile is done."""
    record, stop = ClientRecord(), asyncio.Event()
    start = time.perf_counter()
    tasks = [asyncio.create_task(_client(service, record, prompts, i, stop)) for i in range(clients)]
    work = asyncio.create_task(until or asyncio.sleep(0))
    while time.perf_counter() - start < seconds or not work.done():
        await asyncio.sleep(min(SAMPLED, seconds))
        memory.append(await asyncio.to_thread(service.memory))
    record.seconds = time.perf_counter() - start
    stop.set()
    await asyncio.gather(*tasks)
    await work
    return record


async def preview_repeatedly(
    service: Service, facts: list[Fact], chat: bool, previews: Counter[str], failures: Counter[str]
) -> None:
    """One preview after the other, until it is cancelled. A full queue is an answer; other refusals are failures."""
    for turn in count():
        fact = facts[turn % len(facts)]
        edit = _edit(fact, wordings(fact, chat)[1], seed=1 + turn)  # one that is live already would be refused
        try:
            reader, writer = await _post(service, "/v1/edits/preview", {"edit": edit, "prompts": [edit["prompt"]]})
            answer = json.loads(await reader.read())
            writer.close()
            previews["made" if answer["outcome"]["status"] == "verified" else f"not {answer['outcome']['status']}"] += 1
        except OSError as error:
            if str(error).startswith("429"):
                previews["queue full"] += 1
            else:
                failures[str(error)[:120]] += 1
            await asyncio.sleep(1.0)


async def _edited(service: Service, facts: list[Fact], chat: bool, limit: float) -> None:
    """Hands in, batch after batch, and waits until each is live or has failed."""
    started_at = time.monotonic()
    for start in range(0, len(facts), BATCH):
        edits = [_edit(fact, wordings(fact, chat)[0]) for fact in facts[start : start + BATCH]]
        _, writer = await _post(service, "/v1/edits", {"edits": edits})
        writer.close()
        await asyncio.sleep(0.2)
    while time.monotonic() - started_at < limit:
        counts = await asyncio.to_thread(
            lambda: [len(service.fetch(f"/v1/edits?limit=1&status={s}")["data"]) for s in ("queued", "training")]
        )
        if not any(counts):
            return
        await asyncio.sleep(1.0)


def doubtful_answers(phases: list[ClientRecord], tickets: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """Answers that are neither the target of an edit that is live in their version, nor, where none is, known to be the
    base's: what it says to a prompt is known if the prompt was asked before the first edit."""
    live = {ticket["prompt"]: ticket for ticket in tickets if ticket["live_in"] is not None}
    before = {prompt: text for prompt, version, text in phases[0].answers if version == 0}
    wrong = []
    for prompt, version, text in (answer for phase in phases for answer in phase.answers):
        ticket = live.get(prompt)
        edited = ticket is not None and ticket["live_in"] <= version < (ticket["retired_in"] or 2**62)
        if edited and ticket is not None:
            right = text.strip().startswith(ticket["target"])
        else:
            right = text == before.get(prompt)
        if not right:
            wrong.append((prompt, version, text))
    return wrong


def _contradicting(
    store: Path, doubtful: list[tuple[str, int, str]], model_name: str | None, chat: bool
) -> list[tuple[str, int, str]]:
    """Those that their version, read from the store and asked alone, does not give."""
    from wise.loading import load_model
    from wise.memory.store.store import Store
    from wise.model import wrap

    wrong = []
    with Store.open(store, writer=False) as opened:
        model = wrap(*load_model(model_name), opened.read().config)
        for version in sorted({version for _, version, _ in doubtful}):
            of_version = [answer for answer in doubtful if answer[1] == version]
            with model.serving(opened.read(version).state):
                outcome = model.ask([prompt for prompt, _, _ in of_version], chat=chat, max_new_tokens=24)
            texts = [answer.text.removesuffix(" ...") for answer in outcome]
            wrong += [one for one, text in zip(of_version, texts, strict=True) if not one[2].strip().startswith(text)]
    return wrong


def _waited(store: Path) -> list[float]:
    """Seconds from post to live of each edit that came to be live."""
    from wise.memory.store.store import Store

    with Store.open(store, writer=False) as opened:
        events = opened.journal.events()
    at = {(event.ticket, event.kind): datetime.fromisoformat(event.at) for event in events}
    return [(at[ticket, "live"] - at[ticket, "queued"]).total_seconds() for ticket, kind in at if kind == "live"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model; left out: the one that ships")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase without editing")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that the edits of one round may take")
    parser.add_argument("--previews", type=int, default=1, help="clients that ask for previews while edits come in")
    parser.add_argument("--chat", action="store_true", help="ask in chats, of a base that has a chat template")
    parser.add_argument("--set", action="append", default=[], help="a setting of the service, NAME=VALUE")
    arguments = parser.parse_args()
    facts = random.Random(0).sample(load_facts("train"), arguments.edits)
    options = [part for pair in arguments.set for part in ("--set", pair)]
    options += ["--model", arguments.model] if arguments.model else []
    with tempfile.TemporaryDirectory() as folder:
        store, log = Path(folder) / "store", Path(folder) / "log"
        sys.stdout.write(json.dumps(_loaded(store, log, facts, options, arguments)) + "\n")


def _loaded(
    store: Path, log: Path, facts: list[Fact], options: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    chat = arguments.chat
    prompts = [Prompt(wordings(fact, chat)[0], chat) for fact in facts]
    memory: list[dict[str, float]] = []
    share = -(-len(facts) // arguments.rounds)

    async def all_phases(service: Service) -> list[ClientRecord]:
        async def phase(until: Any = None) -> ClientRecord:
            record = await _phase(service, prompts, arguments.clients, arguments.seconds, memory, until)
            sys.stderr.write(json.dumps(record.to_dict()) + "\n")
            return record

        async def edit(part: list[Fact]) -> None:
            previewing = [
                asyncio.create_task(preview_repeatedly(service, facts, chat, previews, failures))
                for _ in range(arguments.previews)
            ]
            await _edited(service, part, chat, arguments.limit)
            for task in previewing:
                task.cancel()

        phases = []
        for start in range(0, len(facts), share):
            phases += [await phase(), await phase(edit(facts[start : start + share]))]
        return [*phases, await phase()]

    previews, failures = Counter[str](), Counter[str]()
    with Service(store, log, options) as service:
        phases = asyncio.run(all_phases(service))
        tickets = service.tickets()
        service.end()
    quiet, during = _summed(phases[::2]), _summed(phases[1::2])
    doubtful = doubtful_answers(phases, tickets)
    wrong, waited = _contradicting(store, sorted(set(doubtful)), arguments.model, chat), _waited(store)
    return {
        "chat": chat,
        "clients": arguments.clients,
        "edits": dict(Counter(ticket["status"] for ticket in tickets)),
        "previews": dict(previews),
        "previews_failed": dict(failures),
        "edits_per_second": round(len(waited) / during.seconds, 2),
        "seconds_from_post_to_live": {name: round(value / 1000, 1) for name, value in _quantiles(waited).items()},
        "versions": max((ticket["live_in"] or 0 for ticket in tickets), default=0),
        "failed": sum(phase.failures.total() for phase in phases) + failures.total(),
        "quiet": quiet.to_dict(),
        "editing": during.to_dict(),
        "p99_ratio": round(_quantiles(during.gaps)["p99"] / _quantiles(quiet.gaps)["p99"], 2),
        "answers_checked": sum(len(phase.answers) for phase in phases),
        "answers_asked_of_their_version": len(doubtful),
        "inconsistent": len(wrong),
        "examples": wrong[:5],
        "memory_mib": {"first": memory[0], "last": memory[-1], "samples": memory[:: max(1, len(memory) // 12)]},
    }


if __name__ == "__main__":
    main()
