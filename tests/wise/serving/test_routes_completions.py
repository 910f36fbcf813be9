"""Completions and chats, through OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from serving import NAME, Running, running

FRANCE = "The capital of France is"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("serve") / "store", editing=False) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="reader", max_retries=0) as found:
        yield found


def test_a_completion(client: openai.OpenAI) -> None:
    done = client.completions.create(model=NAME, prompt=FRANCE)
    assert (done.choices[0].text, done.choices[0].finish_reason) == (" Paris.", "stop")
    assert done.usage is not None and done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.system_fingerprint == "version-0"
    assert done.wise == {"version": 0, "namespace": "default", "edits": [[]], "routes": None}


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(client.completions.create(model=NAME, prompt=FRANCE, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == " Paris."
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 1
    assert len({chunk.id for chunk in chunks}) == 1 and len(chunks) > 2


def test_a_chat(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": FRANCE}])
    assert done.choices[0].message.content == " Paris."
    stream = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": FRANCE}], stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == " Paris."


def test_several_prompts_answers_and_seeds(client: openai.OpenAI) -> None:
    prompts = [FRANCE, "The currency of Japan is", "The capital of Spain is"]
    done = client.completions.create(model=NAME, prompt=prompts)
    assert [choice.text for choice in done.choices] == [" Paris.", " the yen.", " Madrid."]
    assert [choice.index for choice in done.choices] == [0, 1, 2]

    def drawn(seed: int) -> list[str]:
        done = client.completions.create(model=NAME, prompt="Once", n=3, seed=seed, temperature=1.5, max_tokens=8)
        return [choice.text for choice in done.choices]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) > 1
    narrow = client.completions.create(model=NAME, prompt=FRANCE, temperature=1.0, top_p=0.01, seed=3)
    assert narrow.choices[0].text == " Paris."


def test_stop_sequences_and_limits(client: openai.OpenAI) -> None:
    done = client.completions.create(model=NAME, prompt=FRANCE, stop="ris")
    assert (done.choices[0].text, done.choices[0].finish_reason) == (" Pa", "stop")
    chunks = client.completions.create(model=NAME, prompt=FRANCE, stop=["ris.", "never"], stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == " Pa"
    done = client.completions.create(model=NAME, prompt=FRANCE, max_tokens=1)
    assert done.choices[0].finish_reason == "length"


def test_logprobs(client: openai.OpenAI) -> None:
    done = client.completions.create(model=NAME, prompt=FRANCE, logprobs=2)
    told = done.choices[0].logprobs
    assert told is not None and told.token_logprobs and told.top_logprobs
    assert all(chance <= 0 for chance in told.token_logprobs)
    for token, chance, top in zip(told.tokens or [], told.token_logprobs, told.top_logprobs, strict=True):
        assert len(top) == 2 and top[token] == pytest.approx(chance) == max(top.values())
    message = [{"role": "user", "content": FRANCE}]
    chat = client.chat.completions.create(model=NAME, messages=message, logprobs=True, top_logprobs=3)
    assert chat.choices[0].logprobs and len(chat.choices[0].logprobs.content[0].top_logprobs) == 3


def test_token_ids_are_a_prompt(served: Running, client: openai.OpenAI) -> None:
    ids = served.service.encoder.prompt(FRANCE)
    assert client.completions.create(model=NAME, prompt=ids).choices[0].text == " Paris."
    with pytest.raises(openai.BadRequestError, match="not in the vocabulary"):
        client.completions.create(model=NAME, prompt=[10**6])


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="is not served"):
        client.models.retrieve("another")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_tokens": 100_000}, "do not fit the context"),
        ({"prompt": "word " * 5000}, "do not fit the context"),
        ({"n": 1000}, "16 answers"),
        ({"prompt": ["a"] * 1000}, "64 are taken"),
        ({"temperature": -1.0}, "temperature"),
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"extra_body": {"temprature": 0}}, "temprature"),
    ],
)
def test_what_cannot_be_done_is_said(client: openai.OpenAI, change: dict[str, object], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        client.completions.create(**{"model": NAME, "prompt": FRANCE, **change})


def test_rows_in_one_batch_say_what_they_say_alone(client: openai.OpenAI) -> None:
    prompts = ["Once upon a time there was", FRANCE, "The", "A man and a woman of the city of"]
    alone = [client.completions.create(model=NAME, prompt=p, max_tokens=12).choices[0].text for p in prompts]
    together = client.completions.create(model=NAME, prompt=prompts, max_tokens=12)
    assert [choice.text for choice in together.choices] == alone


def test_a_folder_for_the_store_is_made(tmp_path: Path, served: Running) -> None:
    assert served.service.store.journal.version().number == 0
