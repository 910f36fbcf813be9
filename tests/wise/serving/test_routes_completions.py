"""Completions and chats, through OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import FRANCE, NAME, Running, running

from wise.serving.engines import GenerationRequest
from wise.serving.engines.local import Runner
from wise.serving.engines.sampling import Sampler


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("serve") / "store", editing=False) as service:
        yield service


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="reader", max_retries=0) as openai_client:
        yield openai_client


def test_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt=FRANCE, temperature=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" Paris.", "stop")
    usage = answer.usage
    assert usage is not None and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.system_fingerprint == "version-0"
    assert answer.wise == {
        "version": 0, "namespace": "default", "edits": [[]], "routes": None, "finish_reasons": ["stop"]
    }


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model=NAME, prompt=FRANCE, stream=True, temperature=0))
    assert "".join(chunk.choices[0].text for chunk in chunks) == " Paris."  # as OpenAI's own examples read it
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert [hasattr(chunk, "wise") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1 and len(chunks) > 2


def test_a_stream_ends_with_usage_where_that_is_asked_for(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(client.completions.create(model=NAME, prompt=FRANCE, stream=True, stream_options=options))
    assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 1
    with pytest.raises(openai.BadRequestError, match="stream_options: goes with stream=true"):
        client.completions.create(model=NAME, prompt=FRANCE, stream_options=options)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": FRANCE}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": FRANCE}]}),
        ("/v1/responses", {"input": FRANCE}),
    ],
)
def test_a_stream_whose_model_fails_ends_with_the_reason(
    served: Running, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    def broken(self: Runner, *_: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Runner, "run", broken)
    with served.client("reader") as client:
        answer = client.post(path, json=body | {"model": NAME, "stream": True})
    assert answer.status_code == 200
    *_, kind, data = [line for line in answer.text.splitlines() if line]
    assert kind == "event: error"
    assert "the model failed on this request" in json.loads(data.removeprefix("data: "))["error"]["message"]


def test_a_chat(client: openai.OpenAI) -> None:
    request = {"model": NAME, "messages": [{"role": "user", "content": FRANCE}], "temperature": 0}
    assert client.chat.completions.create(**request).choices[0].message.content == " Paris."
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**request, stream=True)]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.content or "" for delta in deltas) == " Paris."


def test_several_prompts_answers_and_seeds(client: openai.OpenAI) -> None:
    prompts = [FRANCE, "The currency of Japan is", "The capital of Spain is"]
    answer = client.completions.create(model=NAME, prompt=prompts, temperature=0)
    assert [choice.text for choice in answer.choices] == [" Paris.", " the yen.", " Madrid."]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]

    def drawn(seed: int) -> list[str]:
        answer = client.completions.create(model=NAME, prompt="Once", n=3, seed=seed, temperature=1.5, max_tokens=8)
        return [choice.text for choice in answer.choices]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) > 1
    narrow = client.completions.create(model=NAME, prompt=FRANCE, temperature=1.0, top_p=0.01, seed=3)
    assert narrow.choices[0].text == " Paris."


def test_stop_sequences_and_limits(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt=FRANCE, stop="ris", temperature=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" Pa", "stop")
    chunks = client.completions.create(model=NAME, prompt=FRANCE, stop=["ris.", "never"], stream=True, temperature=0)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == " Pa"
    answer = client.completions.create(model=NAME, prompt=FRANCE, max_tokens=1, temperature=0)
    assert answer.choices[0].finish_reason == "length"


def drawn_texts(client: openai.OpenAI, **fields: Any) -> set[str]:
    answer = client.completions.create(model=NAME, prompt=FRANCE, n=8, seed=3, max_tokens=2, **fields)
    return {choice.text for choice in answer.choices}


def test_an_answer_is_drawn_where_no_temperature_is_given(client: openai.OpenAI) -> None:
    assert len(drawn_texts(client, temperature=2.0)) > 1
    assert drawn_texts(client, logit_bias={"2": -100}) == drawn_texts(client, logit_bias={"2": -100}, temperature=1.0)
    [greedy] = drawn_texts(client, temperature=0)
    for narrow in ({"top_k": 1}, {"min_p": 1.0}):
        assert drawn_texts(client, temperature=2.0, extra_body=narrow) == {greedy}
    assert drawn_texts(client, temperature=2.0, top_p=0.0) == {greedy}


def test_what_openai_and_vllm_name_is_drawn_by(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    init, drawn = Sampler.__init__, list[GenerationRequest]()

    def noted(self: Sampler, request: GenerationRequest, *given: Any) -> None:
        drawn.append(request)
        init(self, request, *given)

    monkeypatch.setattr(Sampler, "__init__", noted)
    openais = {"temperature": 0.5, "top_p": 0.9, "presence_penalty": 1.0, "frequency_penalty": -0.5}
    vllms = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}
    client.completions.create(model=NAME, prompt=FRANCE, **openais, extra_body=vllms)
    client.completions.create(model=NAME, prompt=FRANCE)
    given, neutral = ([getattr(request, name) for name in openais | vllms] for request in drawn)
    assert given == [*(openais | vllms).values()] and neutral == [1.0, 1.0, 0.0, 0.0, 0, 0.0, 1.0]


@pytest.mark.parametrize("prompt", [FRANCE, "Caf\u00e9 \u20ac5 \U0001f600 and"])
@pytest.mark.parametrize("streamed", [False, True])
def test_logprobs_are_of_real_text(client: openai.OpenAI, prompt: str, streamed: bool) -> None:
    """With `echo` of the prompt, so that some characters have several tokens."""
    request = {"model": NAME, "prompt": prompt, "logprobs": 2, "echo": True, "max_tokens": 6, "seed": 1}
    answer = client.completions.create(**request, stream=streamed)
    choices = [chunk.choices[0] for chunk in answer] if streamed else [answer.choices[0]]
    text = "".join(choice.text for choice in choices)
    logprobs = {
        name: [value for choice in choices for value in getattr(choice.logprobs, name)]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    assert text.startswith(prompt) and len({len(column) for column in logprobs.values()}) == 1
    assert logprobs["token_logprobs"][0] is None is logprobs["top_logprobs"][0]
    spelled = b""
    for token, chance, top, offset in list(zip(*logprobs.values(), strict=True)):
        raw = token.removeprefix("bytes:")
        spelled += token.encode() if raw == token else bytes(int(byte, 16) for byte in raw.split("\\x")[1:])
        if raw == token and not token.startswith("<"):
            assert text[offset:].startswith(token)
        if top is not None:
            assert len(top) in (2, 3) and top[token] == chance <= max(top.values()) <= 0
    assert spelled.decode().removeprefix("<s>").startswith(text)
    assert any(token.startswith("bytes:") for token in logprobs["tokens"]) == ("\u20ac" in prompt)


def test_logprobs_of_a_chat_have_real_bytes(client: openai.OpenAI) -> None:
    message = [{"role": "user", "content": FRANCE}]
    request = {"model": NAME, "messages": message, "logprobs": True, "top_logprobs": 3, "temperature": 0}
    choice = client.chat.completions.create(**request).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    text = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content).decode()
    assert text.startswith(choice.message.content or "?") and text.startswith(" Paris")
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 3 and token.token.encode() == bytes(token.bytes or [])
        assert token.top_logprobs[0].token == token.token
    streamed = client.chat.completions.create(**request, stream=True)
    assert [e for chunk in streamed for e in chunk.choices[0].logprobs.content] == choice.logprobs.content


def test_a_prompt_is_measured_without_an_answer(client: openai.OpenAI) -> None:
    """As lm-eval measures the likelihood of a text: each token is as likely as when it is generated."""
    request = {"model": NAME, "temperature": 0, "logprobs": 1}
    choice = client.completions.create(**request, prompt=FRANCE).choices[0]
    both = client.completions.create(**request, prompt=FRANCE + choice.text, echo=True, max_tokens=0).choices[0]
    assert both.text == FRANCE + choice.text and both.finish_reason == "length"
    ends = len(choice.logprobs.tokens) - 1  # without the token that ends the text
    assert both.logprobs.tokens[-ends:] == choice.logprobs.tokens[:ends]
    assert both.logprobs.token_logprobs[-ends:] == pytest.approx(choice.logprobs.token_logprobs[:ends], abs=1e-4)


def test_the_best_of_several_answers_is_given(client: openai.OpenAI) -> None:
    request = {"model": NAME, "prompt": [FRANCE, "Once"], "seed": 1, "max_tokens": 4, "temperature": 1.5, "logprobs": 0}
    every = client.completions.create(**request, n=6).choices
    best = client.completions.create(**request, n=2, best_of=6, echo=True)

    def mean(choice: Any) -> float:
        values = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    for i, prompt in enumerate((FRANCE, "Once")):
        expected = sorted(every[6 * i : 6 * i + 6], key=mean, reverse=True)[:2]
        texts = [choice.text for choice in best.choices[2 * i : 2 * i + 2]]
        assert texts == [prompt + choice.text for choice in expected]
    with pytest.raises(openai.BadRequestError, match="best_of: 1 was given"):
        client.completions.create(**request, n=2, best_of=1)


def test_token_ids_are_a_prompt(served: Running, client: openai.OpenAI) -> None:
    ids = served.service.encoder.prompt(FRANCE)
    assert client.completions.create(model=NAME, prompt=ids, temperature=0).choices[0].text == " Paris."
    with pytest.raises(openai.BadRequestError, match="not in the vocabulary"):
        client.completions.create(model=NAME, prompt=[10**6])


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="is not served"):
        client.models.retrieve("another")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"max_tokens": 100_000}, "do not fit the context"),
        ({"prompt": "word " * 5000}, "do not fit the context"),
        ({"n": 1000}, "16 answers"),
        ({"prompt": ["a"] * 1000}, "64 are taken"),
        ({"temperature": -1.0}, "temperature"),
        ({"frequency_penalty": 2.5}, "frequency_penalty: 2.5 was given"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5: 101 was given"),
        ({"logit_bias": {"99999": 1}}, "logit_bias: token 99999 is not in the vocabulary"),
        ({"extra_body": {"top_k": -2}}, "top_k"),
        ({"extra_body": {"repetition_penalty": 1e-310}}, "repetition_penalty: 1e-310 was given"),
        ({"extra_body": {"temprature": 0}}, "temprature"),
    ],
)
def test_what_cannot_be_done_is_said(client: openai.OpenAI, change: dict[str, object], problem: str) -> None:
    with pytest.raises(openai.BadRequestError, match=problem):
        client.completions.create(**{"model": NAME, "prompt": FRANCE, **change})


def test_rows_in_one_batch_say_what_they_say_alone(client: openai.OpenAI) -> None:
    prompts = ["Once upon a time there was", FRANCE, "The", "A man and a woman of the city of"]
    request = {"model": NAME, "max_tokens": 12, "temperature": 0}
    alone = [client.completions.create(**request, prompt=prompt).choices[0].text for prompt in prompts]
    together = client.completions.create(**request, prompt=prompts)
    assert [choice.text for choice in together.choices] == alone


def test_a_folder_for_the_store_is_made(tmp_path: Path, served: Running) -> None:
    assert served.service.store.journal.version().number == 0
