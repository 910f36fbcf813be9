"""vLLM's own server with the middleware: edits of a store that changes, and answers that name them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chats import EDITS, TURNS
from fake_vllm import FakeLLM, NotFoundError, RetryableRequestError, SamplingParams, installed
from followed import answer_router, answer_state
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from tiny import EOS
from waiting import until

import wise
from wise.router.chat_template import conversation_ids
from wise.vllm import edited_client
from wise.vllm.edited_client import EditedClient, RequestMemory, checked_options, request_memory
from wise.vllm.middleware import EditingMiddleware
from wise.vllm.requests import EXTENSION
from wise.vllm.sequences import ServedMemory

STATE = answer_state()
TOKENIZER = answer_router(STATE).inputs.tokenizer
ASKED, OTHER = (conversation_ids(TOKENIZER, turns) for turns in (TURNS, TURNS[:1]))
LAYER = "model.layers.1.mlp.down_proj"


class FakeStore:
    """A store whose second version is without the first edit."""

    namespaces: tuple[str, ...] = ("default",)

    def __init__(self) -> None:
        self.version, self.closed, self.read_count = 1, False, 0
        self.journal = SimpleNamespace(version=lambda: SimpleNamespace(number=self.version))

    def read(self, version: int, folder: str | None) -> dict[tuple[int, str], ServedMemory]:
        self.read_count += 1
        if version == 13:
            raise wise.StoreError("segment 13 is damaged")
        state = STATE if version == 1 else STATE.without([EDITS[0].id])
        memory = ServedMemory(state=state, router=answer_router(state))
        return {(version, name): memory for name in self.namespaces}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    return installed(monkeypatch)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    fake_store: Any = FakeStore()
    monkeypatch.setenv("WISE_STORE", "somewhere")
    monkeypatch.setattr(
        EditedClient, "open", lambda client, place: EditedClient(client, place, fake_store, fake_store, {EOS})
    )
    return fake_store


async def broken(_: Request) -> Response:
    raise KeyError("name")


async def not_found(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": {"message": str(error)}}, 404)


def server(llm: FakeLLM) -> Starlette:
    """A server like vLLM's: its routes generate with the client of the application's state."""

    async def ids(request: Request, body: dict[str, Any]) -> AsyncIterator[int]:
        prompt = {"type": "token", "prompt_token_ids": body["prompt"], "cache_salt": body.get("cache_salt")}
        params = SamplingParams(max_tokens=8, extra_args=body.get("vllm_xargs"))
        name = body.get("request_id", "1")
        async for output in request.app.state.engine_client.generate(prompt, params, name, priority=0):
            yield output.outputs[0].token_ids[0]

    async def completions(request: Request) -> Response:
        body = await request.json()
        if not body["stream"]:
            return JSONResponse({"id": "c", "ids": [i async for i in ids(request, body)]})

        async def events() -> AsyncIterator[str]:
            async for token in ids(request, body):
                yield f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': [body.get('echo', token)]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def models(_: Request) -> Response:
        return JSONResponse({"data": []})

    app = Starlette(
        routes=[
            Route("/completions", completions, methods=["POST"]),
            Route("/models", models),
            Route("/broken", broken),
        ],
        exception_handlers={NotFoundError: not_found},
    )
    app.state.engine_client, app.state.args = llm, SimpleNamespace(chat_template=None)
    app.add_middleware(EditingMiddleware)
    return app


@pytest.fixture
def client(llm: FakeLLM, store: FakeStore) -> Iterator[TestClient]:
    with TestClient(server(llm)) as test_client:
        yield test_client
    assert store.closed


def ask(client: TestClient, prompt: list[int], **more: Any) -> Any:
    headers = more.pop("headers", {})
    answer = client.post("/completions", json={"prompt": prompt, "stream": False, **more}, headers=headers)
    return answer.json() if answer.status_code == 200 and not more.get("stream") else answer


def test_an_answer_has_its_edits_and_names_them(client: TestClient, llm: FakeLLM) -> None:
    answer = ask(client, ASKED)
    assert answer["ids"] == [70, 71, EOS]
    last = len(ASKED) - 1
    expected = {name: getattr(EDITS[0], name) for name in ("id", "prompt", "target")}
    expected |= {"tokens": [*range(last, last + 3)]}
    assert answer["wise"] == {"version": 1, "namespace": "default", "edits": [[expected]]}
    assert llm.asked[-1][1].extra_args["wise"]["version"] == 1 and llm.asked[-1][0]["cache_salt"].startswith("wise:")
    plain = ask(client, OTHER)
    assert plain["ids"] == [8, EOS] and plain["wise"]["edits"] == [[]]
    assert llm.asked[-1][1].extra_args is None and llm.asked[-1][0]["cache_salt"] is None


def test_a_stream_names_its_edits_before_it_is_done(client: TestClient) -> None:
    lines = ask(client, ASKED, stream=True).text.split("\n\n")
    assert lines[-2] == "data: [DONE]" and [line[:7] for line in lines[:-2]] == ["data: {"] * 4
    metadata = json.loads(lines[-3][6:])
    assert (metadata["id"], metadata["model"], metadata["choices"]) == ("c", "m", [])
    assert [edit["id"] for edit in metadata["wise"]["edits"][0]] == [EDITS[0].id]


def test_a_text_may_hold_the_end_of_a_stream(client: TestClient) -> None:
    lines = ask(client, ASKED, stream=True, echo="data: [DONE]").text.split("\n\n")
    events = [json.loads(line[6:]) for line in lines[:-2]]
    assert events[0]["choices"] == ["data: [DONE]"] and ["wise" in event for event in events] == [False] * 3 + [True]


def followed(llm: FakeLLM, store: Any) -> EditedClient:
    return EditedClient(llm, "somewhere", store, store, {EOS})


async def generated(client: EditedClient, request: RequestMemory) -> list[int]:
    """The tokens that the client generates in a task of this request."""
    request_memory.set(request)
    params = SamplingParams(max_tokens=8)
    outputs = client.generate({"type": "token", "prompt_token_ids": ASKED}, params, "1")
    return [output.outputs[0].token_ids[0] async for output in outputs]


async def serve(client: EditedClient, store: FakeStore, *versions: int) -> None:
    for version in versions:
        store.version = version
        await asyncio.to_thread(until, lambda: client.served[0] == store.version)


@pytest.mark.parametrize("first", [True, False])
def test_what_is_generated_keeps_its_version(llm: FakeLLM, store: FakeStore, first: bool) -> None:
    """Whether it is the first answer of a request or not, and though the request itself has ended."""

    async def run() -> None:
        client = followed(llm, store)
        await client.start()
        request = RequestMemory()
        if not first:
            await generated(client, request)
        llm.stalls, count = True, len(llm.asked)
        answer = asyncio.create_task(generated(client, request))
        await asyncio.to_thread(until, lambda: len(llm.asked) > count)
        await serve(client, store, 2, 3)
        assert "wise_drop" not in dict(llm.calls)
        llm.stalls = False
        assert await answer == [70, 71, EOS] and request.version == 1
        await serve(client, store, 4)
        assert [args[0] for method, args in llm.calls if method == "wise_drop"] == [1, 2]
        with pytest.raises(RetryableRequestError, match="version 1 is not served any more"):
            await generated(client, request)
        client.close()

    asyncio.run(run())


def test_a_request_keeps_its_version_until_it_ends(llm: FakeLLM, store: FakeStore) -> None:
    async def run() -> None:
        client = followed(llm, store)
        await client.start()
        with ExitStack() as exit_stack:
            request, idle = RequestMemory(exit_stack=exit_stack), RequestMemory(exit_stack=exit_stack)
            await generated(client, request)
            await serve(client, store, 2, 3)
            assert await generated(client, request) == [70, 71, EOS]
        await serve(client, store, 4)
        assert [args[0] for method, args in llm.calls if method == "wise_drop"] == [1, 2]
        assert idle.version is None, "it has not asked yet, and keeps nothing"
        client.close()

    asyncio.run(run())


def test_versions_come_as_they_change(client: TestClient, store: FakeStore, llm: FakeLLM) -> None:
    store.version = 2
    until(lambda: ask(client, ASKED)["wise"]["version"] == 2)
    assert ask(client, ASKED)["ids"] == [8, EOS]
    store.version = 13
    assert ask(client, ASKED)["wise"]["version"] == 2
    store.version = 3
    until(lambda: ask(client, ASKED)["wise"]["version"] == 3)
    assert [args[0] for method, args in llm.calls if method == "wise_drop"] == [1]


def test_what_a_client_may_not_say(client: TestClient, llm: FakeLLM) -> None:
    assert ask(client, OTHER, vllm_xargs={"wise": "x", "own": 1})["ids"] == [8, EOS]
    assert llm.asked[-1][1].extra_args == {"own": 1}
    salts = []
    for prompt in (ASKED, OTHER):
        ask(client, prompt, cache_salt="wise:mine")
        salts.append(llm.asked[-1][0]["cache_salt"])
    assert salts[0].startswith("wise:") and salts[0].endswith("/wise:mine") and salts[1] == "/wise:mine"
    unknown = ask(client, ASKED, headers={"X-Wise-Namespace": "other"})
    assert unknown.status_code == 404 and "'other'; there are: default" in unknown.json()["error"]["message"]
    assert client.get("/models", headers={"X-Wise-Namespace": "other"}).json() == {"data": []}, "no key was checked"


def test_what_fails_in_the_server_is_its_own(client: TestClient) -> None:
    with pytest.raises(KeyError, match="name"):
        client.get("/broken")


def test_beams_are_no_answers(client: TestClient, llm: FakeLLM) -> None:
    answer = ask(client, ASKED, request_id="cmpl-1-0-beam-3")
    assert answer == {"id": "c", "ids": [70, 71, EOS]} and llm.asked[-1][1].extra_args["wise"]["version"] == 1


def test_trouble_with_the_store_is_logged_once(
    client: TestClient, store: FakeStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edited_client, "RETRY", 0.01)
    store.version = 13
    until(lambda: store.read_count > 4)
    assert caplog.text.count("could not be taken over; 1 is served") == 1


def test_a_server_without_edits_does_not_start(
    llm: FakeLLM, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.version = 13
    with pytest.raises(wise.StoreError, match="segment 13"), TestClient(server(llm)):
        pass
    app = server(llm)
    app.state.args.chat_template = "other.jinja"
    with pytest.raises(wise.ConfigError, match="the tokenizer's own template"), TestClient(app):
        pass
    monkeypatch.delenv("WISE_STORE")
    with pytest.raises(wise.ConfigError, match="WISE_STORE is not set"), TestClient(server(llm)):
        pass


def config(
    extension: str = EXTENSION, vocabulary: int = 100, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    model = SimpleNamespace(
        hf_config=SimpleNamespace(model_type="llama"),
        hf_text_config=SimpleNamespace(vocab_size=vocabulary),
        dtype=dtype,
        model="base",
        tokenizer="base",
        try_get_generation_config=lambda: {"eos_token_id": EOS},
    )
    return SimpleNamespace(
        additional_config=options, parallel_config=SimpleNamespace(worker_extension_cls=extension), model_config=model
    )


def test_how_the_engine_is_started_is_said() -> None:
    base: Any = SimpleNamespace(model_type="llama", vocabulary=100, path=LAYER, precision="float32", dtype="float32")
    wise_options = {"layer": LAYER, "encoder": "e"}
    for known_base in (base, None):
        assert checked_options(config(wise=wise_options), known_base) == wise_options
    for wrong in (config(), config(extension="", wise=wise_options)):
        with pytest.raises(wise.ConfigError, match=f"--additional-config.wise.layer {LAYER}"):
            checked_options(wrong, base)
    with pytest.raises(wise.ConfigError, match="wise info"):
        checked_options(config(), None)
    for wrong in (config(vocabulary=99, wise=wise_options), config(wise={"layer": "model.layers.0.mlp.down_proj"})):
        with pytest.raises(wise.ConfigError, match="name its store"):
            checked_options(wrong, base)
    with pytest.raises(wise.ConfigError, match="made in float32 and vLLM serves bfloat16.*--dtype float32"):
        checked_options(config(dtype=torch.bfloat16, wise=wise_options), base)


def test_a_base_of_another_name_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base: Any = SimpleNamespace(model_type="llama", vocabulary=100, path=LAYER, precision="float32", dtype="float32")
    store_of_base: Any = SimpleNamespace(read=lambda: SimpleNamespace(base=base))
    monkeypatch.setattr(edited_client, "open_reader", lambda _: store_of_base)
    monkeypatch.setattr(edited_client, "Memories", lambda *_: None)
    tokenizer = SimpleNamespace(eos_token_id=EOS)
    llm: Any = SimpleNamespace(
        vllm_config=config(wise={"layer": LAYER}), get_tokenizer=lambda: tokenizer, generate=None
    )
    for base.name, problem in (("base", ""), ("tuned", "made on 'tuned' and vLLM serves 'base'")):
        EditedClient.open(llm, "somewhere")
        assert problem in caplog.text and bool(problem) == bool(caplog.text)


@pytest.mark.parametrize("header", ["\u00e9quipe".encode(), "e\u0301quipe".encode(), b"\xe9quipe"])
def test_a_namespace_of_any_letters_is_reached(llm: FakeLLM, store: FakeStore, header: bytes) -> None:
    store.namespaces = ("default", "\u00e9quipe")
    with TestClient(server(llm)) as client:
        answer = ask(client, ASKED, headers={b"X-Wise-Namespace": header})
    assert answer["wise"]["namespace"] == "\u00e9quipe" and answer["wise"]["edits"][0]
