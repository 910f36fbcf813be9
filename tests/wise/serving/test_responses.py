"""`/v1/responses` as OpenAI's client uses it: whole and streamed, with functions, and nothing stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import FRANCE, NAME, Running, running

FUNCTION: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TEMPLATE = (
    "{%- for tool in tools or [] %}Tool {{ tool.function.name }}\n{% endfor %}"
    "{%- for m in messages %}{{ m.role }}: {{ m.content }}"
    "{%- for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}\n"
    "{%- endfor %}Answer: "
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("responses") / "store", template=TEMPLATE) as service:
        service.edit({"prompt": FRANCE, "target": "Lyon", "subject": "France"})
        yield service


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="reader", max_retries=0) as openai_client:
        yield openai_client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    defaults = {"model": NAME, "input": FRANCE, "temperature": 0, "max_output_tokens": 8}
    return client.responses.create(**defaults | fields)


def chatted(client: openai.OpenAI, *messages: tuple[str, str]) -> str:
    """The answer to a chat of the same messages."""
    chat: Any = [{"role": role, "content": content} for role, content in messages]
    answer = client.chat.completions.create(model=NAME, messages=chat, temperature=0, max_tokens=8)
    return answer.choices[0].message.content or ""


def test_an_answer_is_that_of_the_chat_that_it_stands_for(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.output_text == chatted(client, ("user", FRANCE)) and "Lyon" in answer.output_text
    assert (answer.status, answer.object, answer.error, len(answer.output)) == ("completed", "response", None, 1)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.wise["version"] == 1 and answer.wise["edits"][0][0]["target"] == "Lyon"
    parts = [{"type": "input_text", "text": "The capital of "}, {"type": "input_text", "text": "Spain is"}]
    turns = [{"role": "user", "content": FRANCE}, *answer.output, {"role": "user", "content": parts}]
    expected = chatted(
        client, ("system", "Be brief."), ("user", FRANCE), ("assistant", answer.output_text),
        ("user", "The capital of Spain is"),
    )
    assert ask(client, instructions="Be brief.", input=turns).output_text == expected != answer.output_text
    short = ask(client, max_output_tokens=1)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_stream_tells_the_whole_in_parts(client: openai.OpenAI) -> None:
    whole = ask(client)
    events = list(ask(client, stream=True, include=["message.output_text.logprobs"], top_logprobs=1))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert set(kinds[4:-4]) == {"output_text.delta"} and len(deltas) > 1
    assert "".join(delta.delta for delta in deltas) == whole.output_text == events[-1].response.output_text
    assert sum(len(delta.logprobs) for delta in deltas) == events[-1].response.usage.output_tokens
    assert events[-1].response.usage == whole.usage and events[-1].response.wise == whole.wise


@pytest.mark.parametrize("streamed", [False, True])
def test_a_function_is_called_and_its_output_read(client: openai.OpenAI, streamed: bool) -> None:
    fields = {"tools": [FUNCTION], "tool_choice": "required", "max_output_tokens": 64}
    if streamed:
        events = list(ask(client, stream=True, **fields))
        kinds = [event.type.removeprefix("response.") for event in events]
        assert kinds[2:-1] == [
            "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        ]
        answer = events[-1].response
    else:
        answer = ask(client, **fields)
    [call] = answer.output
    assert (call.type, call.name, answer.tools[0].name) == ("function_call", "weather", "weather")
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    assert ask(client, input=[{"role": "user", "content": FRANCE}, call, output], tools=[FUNCTION]).output_text


def test_an_answer_keeps_to_a_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "name": "number", "schema": schema, "strict": True}
    assert json.loads(ask(client, text={"format": form}, max_output_tokens=64).output_text)["n"] in (1, 2)


@pytest.mark.parametrize(
    ("fields", "param", "problem"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "answers are not stored here; send the earlier"),
        ({"conversation": {"id": "c"}}, "conversation", "answers are not stored here"),
        ({"store": True}, "store", "True was given"),
        ({"background": True}, "background", "True was given"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input", "input_text"),
        ({"input": "word " * 9000}, "input", "do not fit the context"),
        ({"tool_choice": "required"}, "tool_choice", "it is not among tools"),
        ({"extra_body": {"colour": "red"}}, "colour", "not known here"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str, problem: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **fields)
    assert str(refused.value.param).startswith(param) and problem in str(refused.value)
