"""Clients of other projects against the service: LangChain, LiteLLM and lm-eval's `local-completions`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from serving import FRANCE, NAME, Running, running

from wise.demo import model_path

TEMPLATE = (
    "{%- for tool in tools or [] %}{{ tool.function.name }}\n{% endfor %}"
    "{%- for m in messages %}{{ m.content }}{% endfor %}"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("clients") / "store", editing=False, template=TEMPLATE) as service:
        yield service


@pytest.fixture(autouse=True)
def as_others_are(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ignores warnings of these packages. LiteLLM looks for prices on the network when it is imported."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_langchain(served: Running) -> None:
    openai = pytest.importorskip("langchain_openai", reason="needs langchain-openai")
    options = {"base_url": f"{served.url}/v1", "api_key": "reader", "model": NAME, "temperature": 0, "max_retries": 0}
    chat = openai.ChatOpenAI(**options, max_tokens=60)
    answer = chat.invoke(FRANCE)
    assert answer.content == " Paris." and answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["output_tokens"] > 1
    parts = list(chat.stream([("system", ""), ("user", FRANCE)], stream_usage=True))
    assert "".join(part.content for part in parts) == " Paris."
    assert [part.usage_metadata["total_tokens"] > 1 for part in parts if part.usage_metadata] == [True]
    assert openai.OpenAI(**options, max_tokens=8).invoke(FRANCE) == " Paris."

    city = {"properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": False}
    schema = {"title": "city", "type": "object"} | city
    tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    answer = chat.bind_tools([tool], tool_choice="weather").invoke(FRANCE)
    assert answer.tool_calls[0]["name"] == "weather" and answer.tool_calls[0]["args"]["city"] in ("Paris", "Rome")
    result = {"role": "tool", "content": "x", "tool_call_id": answer.tool_calls[0]["id"]}
    assert isinstance(chat.bind_tools([tool]).invoke([("user", FRANCE), answer, result]).content, str)
    assert chat.with_structured_output(schema, method="json_schema").invoke(FRANCE)["city"] in ("Paris", "Rome")


def test_litellm(served: Running) -> None:
    litellm = pytest.importorskip("litellm", reason="needs litellm")
    options = {"api_base": f"{served.url}/v1", "api_key": "reader", "temperature": 0, "max_tokens": 8}
    messages = [{"role": "user", "content": FRANCE}]
    answer = litellm.completion(model=f"openai/{NAME}", messages=messages, **options)
    assert answer.choices[0].message.content == " Paris." and answer.choices[0].finish_reason == "stop"
    parts = litellm.completion(model=f"openai/{NAME}", messages=messages, stream=True, **options)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == " Paris."
    text = litellm.text_completion(model=f"text-completion-openai/{NAME}", prompt=FRANCE, **options)
    assert text.choices[0].text == " Paris."


@pytest.mark.parametrize("expected", ["Paris", "Rome"])
def test_lm_eval(served: Running, expected: str) -> None:
    """It measures the likelihood of each choice by `echo`, and generates."""
    pytest.importorskip("tenacity", reason="needs lm-eval[api]")
    models = pytest.importorskip("lm_eval.models.openai_completions", reason="needs lm-eval")
    from lm_eval.api.instance import Instance

    lm = models.LocalCompletionsAPI(
        base_url=f"{served.url}/v1/completions",
        model=NAME,
        tokenizer=str(model_path()),
        tokenizer_backend="huggingface",
        header={"Authorization": "Bearer reader"},
        max_retries=1,
    )
    pairs = [(FRANCE, f" {city}.") for city in (expected, "Tokyo")]

    def instance(kind: str, arguments: tuple[Any, ...], number: int) -> Any:
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=number)

    scores = lm.loglikelihood([instance("loglikelihood", pair, i) for i, pair in enumerate(pairs)], disable_tqdm=True)
    assert [greedy for _, greedy in scores] == [expected == "Paris", False]
    tokenizer = served.service.tokenizer
    for (prompt, answer), (total, _) in zip(pairs, scores, strict=True):
        ids, both = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + answer)
        )
        with served.client("reader") as client:
            body = {"model": NAME, "prompt": both, "echo": True, "max_tokens": 0, "logprobs": 0}
            chances = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["token_logprobs"]
        assert total == pytest.approx(sum(chances[len(ids) :]), abs=1e-3) and total < 0
    texts = lm.generate_until(
        [instance("generate_until", (FRANCE, {"until": ["."], "max_gen_toks": 8, "temperature": 0}), 0)],
        disable_tqdm=True,
    )
    assert [json.dumps(text) for text in texts] == ['" Paris"']
