"""Chats as clients of OpenAI's API send them: neutral fields, roles, tools, answers within a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from serving import FRANCE, NAME, Running, running

from wise.serving import prompts
from wise.serving.answers import GeneratedAnswer, usage_of
from wise.serving.schemas_chat import Function, Tool
from wise.serving.schemas_completions import CompletionRequest
from wise.serving.tool_calls import ToolCallParser, call_schema

TEMPLATE = (
    "{%- for tool in tools or [] %}Tool {{ tool.function.name }} {{ tool.function.description }}\n{% endfor %}"
    "{%- for m in messages %}{{ m.role }}: {{ m.content }}"
    "{%- for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}\n"
    "{%- endfor %}Answer: "
)
"""A chat template that takes tools, as those of Hermes and Qwen do."""
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/C"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"C": {"enum": ["Paris", "Rome"]}},
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
USER = {"role": "user", "content": FRANCE}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("chats") / "store", editing=False, template=TEMPLATE) as service:
        yield service


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="reader", max_retries=0) as openai_client:
        yield openai_client


def post(served: Running, body: dict[str, Any], path: str = "/v1/chat/completions") -> Any:
    with served.client("reader") as client:
        return client.post(path, json={"model": NAME, "max_tokens": 2, "messages": [USER]} | body)


NEUTRAL: list[dict[str, Any]] = [
    {"response_format": {"type": "text"}},
    {"tools": []},
    {"tools": None, "tool_choice": "auto"},
    {"tools": [WEATHER], "tool_choice": "none"},
    {"logit_bias": {}},
    {"logit_bias": None, "stop": None, "n": None, "seed": None, "stream_options": None, "wise": None},
    {"store": False, "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
    {"parallel_tool_calls": False, "service_tier": "auto", "modalities": ["text"]},
    {"max_tokens": 2.0, "n": 1.0, "seed": 5.0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0},
    {"max_tokens": None, "max_completion_tokens": 2},
    {"stop": [], "verbosity": "medium", "audio": None, "prediction": None, "functions": []},
    {"stream": True, "stream_options": {}},
]


@pytest.mark.parametrize("body", NEUTRAL)
def test_what_changes_nothing_is_accepted(served: Running, body: dict[str, Any]) -> None:
    assert post(served, body).status_code == 200


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"stop": ""}, "stop", "stop: '' was given; it must not be empty, or Input should be a valid list"),
    ({"stop": ["a", ""]}, "stop.1", "stop.1: '' was given; it must not be empty"),
    ({"store": True}, "store", "store: True was given; Input should be False"),
    ({"modalities": ["text", "audio"]}, "modalities.1", "modalities.1: 'audio' was given; Input should be 'text'"),
    ({"service_tier": "flex"}, "service_tier", "service_tier: 'flex' was given; Input should be 'auto' or 'default'"),
    ({"temprature": 0}, "temprature", "temprature: this field is not known here; take it out"),
    ({"temperature": "hot"}, "temperature", "temperature: 'hot' was given; Input should be a valid number"),
    ({"max_tokens": 1.5}, "max_tokens", "max_tokens: 1.5 was given; Input should be a valid integer"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "messages.0.role: 'king' was given; Input"),
    ({"messages": [{"role": "user"}]}, "messages.0", "content: null was given"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content.0.type",
        "messages.0.content.0.type: 'image_url' was given; Input should be 'text'",
    ),
    ({"messages": [USER | {"content": "a\0"}]}, "messages.0.content", "character 1 is NUL"),
    ({"top_logprobs": 2}, "top_logprobs", "top_logprobs: goes with logprobs=true"),
    ({"max_completion_tokens": 3}, "max_tokens", "max_tokens: is max_completion_tokens by an older name"),
    ({"tool_choice": "required"}, "tool_choice", "tool_choice: 'required' was given, and it is not among tools"),
    ({"tools": [{"type": "function"}]}, "tools.0.function", "tools.0.function: it is missing; give it"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "("}}}},
        "response_format",
        "this JSON schema is not supported",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "x" * 120_000}}}},
        "response_format",
        "response_format: a schema of 120013 characters; 120000 are compiled",
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema: goes with the type"),
    ({"messages": [USER] * 2_000}, "messages", "do not fit the context"),
]


@pytest.mark.parametrize(("body", "param", "problem"), REFUSED)
def test_what_is_not_done_is_refused_by_its_name(
    served: Running, body: dict[str, Any], param: str, problem: str
) -> None:
    answer = post(served, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param) and problem in error["message"]
    for inner in ("0x", "function-after", "constrained", "Content", "Annotated", "Discriminator"):
        assert inner not in error["message"]


def test_what_a_client_sends_back_of_an_answer_is_accepted(served: Running, client: openai.OpenAI) -> None:
    message = client.chat.completions.create(model=NAME, messages=[USER], max_tokens=4).choices[0].message
    again = [{"role": "developer", "content": "Be brief."}, USER, message.model_dump(), USER]
    assert client.chat.completions.create(model=NAME, messages=again, max_tokens=2).choices[0].finish_reason
    old = {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None, "audio": None}
    assert post(served, {"messages": [USER, old, USER]}).status_code == 200


# -- within a JSON schema ---------------------------------------------------------------------------


def test_a_schema_that_is_long_and_not_too_long_is_compiled(served: Running) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": {"enum": [f"city {i}" for i in range(8_000)]}}}
    assert 100_000 < len(json.dumps(form["json_schema"]["schema"])) < 120_000
    assert post(served, {"response_format": form}).status_code == 200


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["king", "poet"]},
        "born": {"type": "integer", "minimum": 1000, "maximum": 2000},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "kind", "born", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1.0, 2.0])
def test_every_answer_is_within_its_schema(client: openai.OpenAI, temperature: float) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    request = {"model": NAME, "messages": [USER], "temperature": temperature, "seed": 3, "max_tokens": 120}
    answer = client.chat.completions.create(**request, n=4, response_format=format_)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), PERSON)
    free = client.chat.completions.create(**request)
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(free.choices[0].message.content or "")


def test_a_schema_is_checked_once_for_a_request(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars, checked = served.service.grammars, list[str]()
    compiled_matcher = grammars.matcher

    def matcher(schema: str) -> Any:
        checked.append(schema)
        return compiled_matcher(schema)

    monkeypatch.setattr(grammars, "matcher", matcher)
    format_ = {"type": "json_schema", "json_schema": {"schema": PERSON}}
    body = {"model": NAME, "prompt": [FRANCE, FRANCE, "Spain"], "n": 2, "seed": 7, "response_format": format_}
    requests = prompts.completion_requests(served.service, CompletionRequest.model_validate(body))
    assert [json.loads(schema) for schema in checked] == [PERSON]
    assert [generation.seed for generation in requests] == [7, 8] * 3
    assert all(generation.json_schema == checked[0] and generation.temperature == 1.0 for generation in requests)
    prompt_ids = [served.service.encoder.prompt(text) for text in (FRANCE, FRANCE, "Spain")]
    prompt_lists = [list(generation.prompt) for generation in requests]
    assert prompt_lists[::2] == prompt_lists[1::2] == prompt_ids
    usage = usage_of([GeneratedAnswer(generation) for generation in requests])
    assert usage.prompt_tokens == sum(map(len, prompt_ids)), "answers to one prompt share it"


def test_an_answer_is_an_object_or_was_cut_off(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=[USER], n=6, seed=1, max_tokens=60, response_format={"type": "json_object"}
    )
    assert all((choice.message.content or "").startswith("{") for choice in answer.choices)
    whole = [choice.message.content for choice in answer.choices if choice.finish_reason == "stop"]
    assert whole and all(isinstance(json.loads(text or ""), dict) for text in whole)


def test_an_edits_token_comes_where_the_grammar_admits_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The memory changes the logits first; tokens that the request forbids are then excluded."""
    with running(tmp_path_factory.mktemp("edited") / "store") as served:
        served.edit({"prompt": FRANCE, "target": "Lyon", "subject": "France"})

        def answer(**more: Any) -> str:
            with served.client("reader") as client:
                body = {"model": NAME, "prompt": FRANCE, "seed": 5, "max_tokens": 6} | more
                return str(client.post("/v1/completions", json=body).json()["choices"][0]["text"]).strip(' ".')

        for more in ({"temperature": 0}, {"temperature": 1.0}, {"presence_penalty": 1.0, "top_k": 5}):
            assert answer(**more) == "Lyon"
        cities = {"type": "json_schema", "json_schema": {"schema": {"enum": ["Paris", "Lyon", "Rome"]}}}
        conflict = {"type": "json_schema", "json_schema": {"schema": {"enum": ["Paris", "Rome"]}}}
        assert answer(response_format=cities, temperature=0) in ("Paris", "Lyon", "Rome")
        assert answer(response_format=conflict, temperature=0) in ("Paris", "Rome")
        first = served.service.tokenizer(" Lyon", add_special_tokens=False)["input_ids"][0]
        assert answer(temperature=0, logit_bias={str(first): -100}) != "Lyon"


# -- tools ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_that_must_be_called_is_called(client: openai.OpenAI, choice: Any, streamed: bool) -> None:
    request = {"model": NAME, "messages": [USER], "tools": [WEATHER], "tool_choice": choice, "seed": 2}
    answer = client.chat.completions.create(**request, stream=streamed)
    if streamed:
        chunks = [chunk.choices[0] for chunk in answer]
        assert "".join(chunk.delta.content or "" for chunk in chunks) == ""
        [call], finish = chunks[-1].delta.tool_calls, chunks[-1].finish_reason
    else:
        assert answer.choices[0].message.content is None
        [call], finish = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
    assert finish == "tool_calls" and call.function.name == "weather" and call.id.startswith("call_")
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])


def test_tools_and_their_results_reach_the_template(served: Running) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    described = {"type": "function", "function": {"name": "weather", "description": "What the weather is."}}
    request = {"model": NAME, "messages": messages, "tools": [described]}
    with served.client("reader") as client:
        ids = client.post("/tokenize", json=request).json()["tokens"]
        text = client.post("/detokenize", json={"model": NAME, "tokens": ids}).json()["prompt"]
    for part in ("What the weather is.", '<tool_call>{"name": "weather"', '"city": "Rome"', "tool: sunny"):
        assert part.replace(" ", "") in text.replace(" ", "")
    wrong = call | {"function": {"name": "weather", "arguments": "[1"}}
    answer = post(served, {"messages": [USER, {"role": "assistant", "tool_calls": [wrong]}]})
    assert answer.status_code == 400 and "a JSON object was expected" in answer.json()["error"]["message"]


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %}: "])
def test_tools_that_the_model_would_not_be_told_of_are_refused(
    tmp_path_factory: pytest.TempPathFactory, template: str | None
) -> None:
    with running(tmp_path_factory.mktemp("none") / "store", editing=False, template=template) as served:
        answer = post(served, {"tools": [WEATHER]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
        assert post(served, {"tools": [WEATHER], "tool_choice": "none"}).status_code == 200


HERMES = '<tool_call>\n{"name": "clock", "arguments": {"zone": "{}"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        ("It is <late> now.", "It is <late> now.", []),
        (HERMES, "", [("clock", {"zone": "{}"})]),
        (f"Let me see. {HERMES}\n{HERMES}", "Let me see. ", [("clock", {"zone": "{}"})] * 2),
        (HERMES.removesuffix("\n</tool_call>"), "", [("clock", {"zone": "{}"})]),
        ('{"name": "clock", "parameters": {}}', "", [("clock", {})]),
        ('  {"name": "clock"}', "", [("clock", {})]),
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', []),
        ("{1, 2} is a set", "{1, 2} is a set", []),
        ('<tool_call>{"name": "clock", </tool_call>', '<tool_call>{"name": "clock", </tool_call>', []),
        ("ends in <tool_", "ends in <tool_", []),
        ("", "", []),
    ],
)
def test_calls_are_told_from_text(answer: str, text: str, calls: list[Any]) -> None:
    for size in (1, 5, 1000):
        parser = ToolCallParser(["clock"])
        passed = [parser.add(answer[i : i + size]) for i in range(0, len(answer), size)]
        rest, parsed_calls = parser.end()
        assert "".join(passed) + rest == text
        assert [(call.function.name, json.loads(call.function.arguments)) for call in parsed_calls] == calls
    parser = ToolCallParser([])
    assert parser.add(answer) + parser.end()[0] == answer, "without tools everything is text"


def test_text_goes_on_while_a_call_may_come() -> None:
    parser = ToolCallParser(["clock"])
    assert [parser.add(part) for part in ("It ", "is <tool", "box>", " then")] == ["It ", "is ", "<toolbox>", " then"]


def test_the_schema_of_a_call_holds_references() -> None:
    tools = [Tool(type="function", function=Function(**tool["function"])) for tool in (CLOCK, WEATHER)]
    schema = json.loads(call_schema(tools))
    jsonschema.validate({"name": "weather", "arguments": {"city": "Rome"}}, schema)
    for wrong in ({"city": "Bonn"}, {}, {"city": "Rome", "days": 2}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"name": "weather", "arguments": wrong}, schema)


# -- tokenizing -------------------------------------------------------------------------------------


def test_a_text_is_tokenized_as_it_is_read(served: Running) -> None:
    encoder, tokenizer = served.service.encoder, served.service.tokenizer
    with served.client("reader") as client:
        tokens = client.post("/tokenize", json={"model": NAME, "prompt": FRANCE, "return_token_strs": True}).json()
        assert tokens["tokens"] == encoder.prompt(FRANCE) and tokens["count"] == len(tokens["tokens"])
        assert "".join(tokens["token_strs"]).endswith(FRANCE) and tokens["max_model_len"] == encoder.context
        bare = client.post("/tokenize", json={"prompt": FRANCE, "add_special_tokens": False}).json()["tokens"]
        assert bare == tokenizer(FRANCE, add_special_tokens=False)["input_ids"]
        assert client.post("/detokenize", json={"tokens": bare}).json() == {"prompt": FRANCE}
        for path, body in (
            ("/detokenize", {"tokens": [10**7]}),
            ("/detokenize", {"tokens": [-1]}),
            ("/tokenize", {}),
            ("/tokenize", {"prompt": "x", "messages": [USER]}),
        ):
            assert client.post(path, json=body).status_code == 400
        assert client.post("/tokenize", json={"model": "another", "prompt": "x"}).status_code == 404
    with served.client("") as stranger:
        assert stranger.post("/tokenize", json={"prompt": "x"}).status_code == 401
