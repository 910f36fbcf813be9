"""Attacks on what asks the model: odd values, long prompts, many answers, and clients that expect OpenAI's API."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from service_process import Service

from attacks import AttackError

MODEL = "wise-demo"
PROMPT = "The capital of France is"
LONGEST_GAP = 1.0
"""Seconds that a stream may stand still."""


def ask(service: Service, body: dict[str, Any], path: str = "/v1/completions") -> tuple[int, Any]:
    """The status and the body of an answer."""
    status, _, text = service.ask(path, {"model": MODEL} | body, seconds=60)
    return status, text


def answer(service: Service, body: dict[str, Any], path: str = "/v1/completions") -> Any:
    """Raises AttackError for any status but 200."""
    status, text = ask(service, body, path)
    if status != 200:
        raise AttackError(f"{path} with {str(body)[:60]}: {status} {text[:120]}")
    return json.loads(text)


def chunks(service: Service, body: dict[str, Any]) -> Iterator[Any]:
    """The events of a stream as they come. Raises AttackError for one that breaks off."""
    with service.open("/v1/completions", {"model": MODEL, "stream": True} | body, seconds=60) as stream:
        for line in stream:
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise AttackError(f"the stream ended with {event['error']['message'][:120]}")
                yield event
    raise AttackError("the stream broke off")


def b11_choices_of_streams(service: Service) -> str:
    """Each chunk of a stream must have a choice."""
    found = [len(chunk["choices"]) for chunk in chunks(service, {"prompt": PROMPT})]
    if 0 in found:
        raise AttackError(f"chunk {found.index(0) + 1} of {len(found)} has no choice, and no usage was asked for")
    return f"{len(found)} chunks, each with a choice"


def b12_real_logprobs(service: Service) -> str:
    """Log-probabilities must be of real text, with offsets."""
    prompt = "Caf\u00e9 \u20ac5 and the capital of France is"
    choice = answer(service, {"prompt": prompt, "logprobs": 1, "max_tokens": 8, "temperature": 0})["choices"][0]
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    if not "".join(tokens).startswith(choice["text"]) or len(offsets) != len(tokens):
        raise AttackError(f"text {choice['text']!r}, tokens {tokens}, offsets {offsets}")
    return f"tokens {tokens} at {offsets}"


def b13_neutral_fields(service: Service) -> str:
    """Neutral fields must be accepted, and errors be readable."""
    neutral: list[dict[str, Any]] = [
        {"n": 1, "user": "u", "seed": 1, "stop": None, "metadata": {"k": "v"}, "store": False},
        {"service_tier": "auto", "parallel_tool_calls": True, "modalities": ["text"], "tools": [], "logit_bias": None},
        {"response_format": {"type": "text"}, "max_completion_tokens": 4.0},
    ]
    for fields in neutral:
        answer(service, {"messages": [{"role": "user", "content": PROMPT}]} | fields, "/v1/chat/completions")
    status, text = ask(service, {"prompt": PROMPT, "stop": ""})
    if status != 400 or "0x" in text or "function-after" in text:
        raise AttackError(f"an empty stop: {status} {text[:160]}")
    return f"{len(neutral)} bodies accepted; an empty stop: {json.loads(text)['error']['message']}"


def b14_deadlines(service: Service) -> str:
    """What was generated until a deadline must be returned."""
    body = {"prompt": [PROMPT] * 8, "n": 8, "max_tokens": 200, "logit_bias": {"2": -100}, "wise": {"deadline": 1.0}}
    if ask(service, body)[0] == 400:  # one that does not know logit_bias
        del body["logit_bias"]
        body |= {"temperature": 2.0, "max_tokens": 240}
    done = answer(service, body)
    tokens, reasons = done["usage"]["completion_tokens"], set(done["wise"]["finish_reasons"])
    if "deadline" not in reasons:
        raise AttackError(f"it was done in time, for {reasons}: nothing was tried")
    return f"{tokens} tokens came back at the deadline"


def b15_what_clients_send(service: Service) -> str:
    """What OpenAI's and vLLM's clients send must be taken."""
    for fields in (
        {"top_k": 5, "min_p": 0.1, "presence_penalty": 1, "repetition_penalty": 1.1},
        {"logit_bias": {"5": -100}, "echo": True, "logprobs": 1, "max_tokens": 0},
        {"response_format": {"type": "json_object"}},
    ):
        answer(service, {"prompt": PROMPT} | fields)
    ids = answer(service, {"prompt": PROMPT}, "/tokenize")["tokens"]
    return f"all accepted; {len(ids)} tokens"


def b18_default_temperature(service: Service) -> str:
    """An answer must be drawn where no temperature is given."""
    texts = {one["text"] for one in answer(service, {"prompt": "Once", "n": 16, "max_tokens": 12})["choices"]}
    if len(texts) == 1:
        raise AttackError("16 answers without a temperature are the same: it is 0, where OpenAI's is 1")
    return f"{len(texts)} different answers of 16"


def b20_odd_values(service: Service) -> str:
    """One answer's odd value must end no other's, and be answered."""
    # While others are answered in the same batch.
    odd: list[dict[str, Any]] = [
        {"temperature": 1e-310},
        {"temperature": 5e-324, "top_p": 5e-324},
        {"temperature": 2.0, "top_p": 1e-300},
        {"temperature": 1e-39, "seed": -(2**63)},
        {"temperature": 1.0, "logit_bias": {"99999999": 1}},
        {"temperature": 1.0, "min_p": 5e-324, "top_k": 10**9},
        {"repetition_penalty": 1e-310},
    ]
    failed: list[str] = []

    def stream() -> None:
        try:
            for _ in chunks(service, {"prompt": "The", "max_tokens": 200, "n": 4, "temperature": 1.0}):
                pass
        except Exception as error:
            failed.append(str(error))

    threads = [threading.Thread(target=stream) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    statuses = []
    for values in odd:
        try:
            statuses.append(ask(service, {"prompt": PROMPT, "wise": {"deadline": 5.0}} | values)[0])
        except OSError as error:
            failed.append(f"{values}: {error}")
    for thread in threads:
        thread.join()
    if failed or not set(statuses) <= {200, 400}:
        raise AttackError(f"statuses {statuses}; others ended with {failed[:2]}")
    return f"statuses {statuses} in {time.monotonic() - begun:.1f} s, and 4 streams went on"


def b21_long_prompts(service: Service) -> str:
    """Prompts of 1 MB must be refused and stop no stream."""
    over = threading.Event()
    statuses = []

    def send() -> None:
        while not over.is_set():
            statuses.append(ask(service, {"prompt": "word and " * 110_000})[0])

    thread = threading.Thread(target=send)
    thread.start()
    last, gaps = time.monotonic(), []
    try:
        while len(statuses) < 3:
            for _ in chunks(service, {"prompt": "The", "max_tokens": 200, "temperature": 1.0}):
                now = time.monotonic()
                gaps.append(now - last)
                last = now
    finally:
        over.set()
        thread.join()
    if max(gaps) > LONGEST_GAP or set(statuses) != {400}:
        raise AttackError(f"a stream stood still for {max(gaps):.1f} s; statuses {statuses}")
    return f"the longest gap of a stream was {max(gaps):.2f} s beside {len(statuses)} prompts of 1 MB"


def b25_too_many_answers(service: Service) -> str:
    """What can never fit must be refused for good."""
    status, text = ask(service, {"prompt": [PROMPT] * 64, "n": 16, "max_tokens": 1})
    if status != 400:
        raise AttackError(f"1,024 answers, which never fit: {status} {text[:120]}")
    return f"{status} {json.loads(text)['error']['message']}"
