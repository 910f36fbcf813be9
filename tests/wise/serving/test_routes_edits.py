"""Edits over HTTP while the service answers: acknowledged edits go live, are reported, and can be undone."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import FRANCE, LYON, NAME, Running, hold, running
from waiting import until

import wise
from wise.errors import StoreError
from wise.memory.state import MemoryState
from wise.memory.store.store import Store
from wise.serving import prompts, routes_edits
from wise.training.trainer import Trainer


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "store") as service:
        yield service


def test_the_life_of_an_edit(served: Running) -> None:
    with served.client("editor") as editor, served.client() as admin:
        assert served.said() == " Paris."
        preview = editor.post("/v1/edits/preview", json={"edit": LYON, "prompts": ["The capital of Spain is"]}).json()
        assert [(a["before"], a["after"]) for a in preview["answers"]] == [("Paris", "Lyon"), ("Madrid", "Madrid")]
        assert served.said() == " Paris."  # nothing was changed

        [live] = served.edit(LYON | {"reason": "a decree"})
        assert (live["status"], live["live_in"], live["author"]) == ("live", 1, "the-editor")
        assert live["outcome"]["status"] == "verified"
        assert served.said() == " Lyon."  # the next answer has the edit
        assert served.said("The capital of Spain is") == " Madrid."

        replaced = editor.put(f"/v1/edits/{live['id']}", json={"target": "Nice", "wait": "live"})
        assert replaced.status_code == 200, replaced.text
        assert served.said() == " Nice."
        new = replaced.json()["edits"][0]["id"]
        history = editor.get(f"/v1/edits/{live['id']}").json()
        assert (history["status"], history["retired_in"]) == ("retired", 2)
        assert [event["kind"] for event in history["events"]] == ["queued", "training", "live", "retired"]

        deletion = editor.delete(f"/v1/edits/{new}", params={"reason": "a mistake"})
        assert (deletion.status_code, deletion.json()["number"], deletion.json()["edits"]) == (200, 3, 0)
        assert served.said() == " Paris."
        assert editor.delete(f"/v1/edits/{new}").status_code == 409
        assert editor.delete("/v1/edits/never").status_code == 404

        back = admin.post("/v1/versions/1/rollback", json={"reason": "it was right"})
        assert (back.status_code, back.json()["number"], back.json()["reason"]) == (200, 4, "it was right")
        assert served.said() == " Lyon."
        diff = admin.get("/v1/versions/2/diff").json()
        assert [(a["target"], b["target"]) for a, b in diff["changed"]] == [("Lyon", "Nice")]
        versions = admin.get("/v1/versions").json()
        assert versions["current"] == 4
        assert [v["kind"] for v in versions["data"]] == ["rollback", "delete", "commit", "commit", "origin"]
        assert admin.post("/v1/versions/99/rollback").status_code == 404


def test_a_replacement_is_valid_for_as_long_as_what_it_replaces(served: Running) -> None:
    [lyon] = served.edit(LYON | {"valid_from": "2020-01-01", "valid_until": "2100-01-01"})
    with served.client("editor") as editor:
        replacement = {"target": "Nice", "wait": "live"}
        [nice] = editor.put(f"/v1/edits/{lyon['id']}", json=replacement).json()["edits"]
        validity = nice["valid_from"], nice["valid_until"]
        assert validity == (lyon["valid_from"], lyon["valid_until"]) and None not in validity
        replacement = {"target": "Metz", "valid_until": "2101-01-01", "wait": "live"}
        [metz] = editor.put(f"/v1/edits/{nice['id']}", json=replacement).json()["edits"]
        assert metz["valid_from"] == nice["valid_from"] and metz["valid_until"].startswith("2101-01-01")


def test_an_edit_of_the_library_that_is_larger_than_http_takes_is_not_replaced(served: Running) -> None:
    neighbours = tuple(f"The sun {number}" for number in range(65))
    served.service.store.enqueue([wise.Edit(**LYON, id="ours", locality=neighbours)])
    with served.client("editor") as editor:
        until(lambda: editor.get("/v1/edits/ours").json()["status"] == "live")
        refused = editor.put("/v1/edits/ours", json={"target": "Nice"})
        assert refused.status_code == 400, refused.text
        assert "field 'locality': List should have at most 64 items" in refused.json()["error"]["message"]
        fewer = editor.put("/v1/edits/ours", json={"target": "Nice", "locality": neighbours[:1]})
        assert fewer.status_code == 202, fewer.text


CHATS = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_an_edit_holds_by_every_name_of_its_subject_and_says_what_was_verified(served: Running) -> None:
    [live] = served.edit(LYON | {"aliases": ["the Hexagon"], "paraphrases": ["In France, the capital is"]})
    assert live["aliases"] == ["the Hexagon"] and live["messages"] == []
    assert live["outcome"]["holds"] == {"completion: prompt": True, "completion: paraphrases[0]": True}
    assert served.said("The capital of the Hexagon is") == " Lyon."
    with served.client("editor") as editor:
        path = f"/v1/edits/{live['id']}"
        [nice] = editor.put(path, json={"target": "Nice", "wait": "live"}).json()["edits"]
        assert (nice["status"], nice["aliases"]) == ("live", ["the Hexagon"])
        replacement = {"target": "Metz", "aliases": ["Gallia"], "wait": "live"}
        [metz] = editor.put(f"/v1/edits/{nice['id']}", json=replacement).json()["edits"]
        assert (metz["status"], metz["aliases"]) == ("live", ["Gallia"])
    assert (served.said("The capital of Gallia is"), served.said()) == (" Metz.", " Metz.")
    assert served.said("The capital of the Hexagon is") != " Metz."


def test_in_a_chat_an_edit_holds_in_every_turn_and_may_be_given_as_one(tmp_path: Path) -> None:
    with running(tmp_path / "store", template=CHATS) as served:
        spain = [("user", "Hello."), ("assistant", "Hi."), ("user", "The capital of Spain is")]
        messages = [{"role": role, "content": text} for role, text in spain]
        france, porto = served.edit(LYON, {"messages": messages, "target": "Porto", "subject": "Spain"})
        assert (porto["prompt"], porto["messages"]) == ("The capital of Spain is", messages)
        names = {"chat: prompt", "chat: later turn", "chat: system message", "completion: prompt"}
        assert set(france["outcome"]["holds"]) == names and all(france["outcome"]["holds"].values())
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="reader", max_retries=0) as client:

            def answer(*turns: tuple[str, str]) -> str:
                chat: Any = [{"role": role, "content": text} for role, text in turns]
                completion = client.chat.completions.create(model=NAME, messages=chat, max_tokens=8, temperature=0)
                return (completion.choices[0].message.content or "").strip(" .")

            assert (answer(*spain), answer(("user", FRANCE))) == ("Porto", "Lyon")
            assert answer(("system", "Be brief."), *spain[:2], ("user", FRANCE)) == "Lyon"
            assert answer(("user", "The capital of Norway is")) not in ("Lyon", "Porto")
        with served.client("editor") as editor:
            [vigo] = editor.put(f"/v1/edits/{porto['id']}", json={"target": "Vigo", "wait": "live"}).json()["edits"]
            assert (vigo["status"], vigo["messages"]) == ("live", messages)


PORTO = {
    "messages": [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "The capital of Spain is"},
    ],
    "target": "Porto",
    "subject": "Spain",
}


def test_questions_and_previews_are_asked_as_users_ask(tmp_path: Path) -> None:
    with running(tmp_path / "store", template=CHATS) as served, served.client("editor") as client:

        def ask(prompt: Any, **more: Any) -> tuple[str, dict[str, Any]]:
            """The prompt as the model read it, and the answers."""
            response = client.post("/v1/ask", json={"prompts": [prompt], **more})
            assert response.status_code == 200, response.text
            [answer] = response.json()["answers"]
            return "".join(r["token"] for r in answer["routes"] if r["part"] == "prompt"), answer

        def previewed(edit: dict[str, Any], *prompts: str) -> dict[str, Any]:
            answer = client.post("/v1/edits/preview", json={"edit": edit, "prompts": prompts})
            assert answer.status_code == 200, answer.text
            return answer.json()  # type: ignore[no-any-return]

        turn, plain = f"<user> {FRANCE}\n<assistant>", ask(FRANCE, chat=False)
        assert ask(FRANCE)[0].endswith(turn) and ask(FRANCE, chat=True)[0].endswith(turn)
        assert plain[0].endswith(FRANCE) and "<user>" not in plain[0]
        whole, conversation = ask(PORTO["messages"])
        assert whole.endswith("<user> Hello.\n<assistant> Hi.\n<user> The capital of Spain is\n<assistant>")
        assert conversation["prompt"] == "The capital of Spain is"

        preview = previewed(PORTO, FRANCE)
        assert (preview["outcome"]["status"], preview["outcome"]["answer"]) == ("verified", "Porto")
        own_answer = {"prompt": "The capital of Spain is", "before": conversation["before"], "after": "Porto"}
        assert preview["answers"][0] == own_answer
        assert own_answer["before"] != "Madrid", "it is answered as plain text: this shows nothing"
        assert preview["answers"][1]["before"] == preview["answers"][1]["after"] == ask(FRANCE)[1]["before"]
        assert preview["answers"][1]["before"] != plain[1]["before"] == "Paris"

        served.edit(LYON)
        assert {ask(FRANCE, chat=chat)[1]["after"] for chat in (None, True, False)} == {"Lyon"}
        for prompt, more, problem in (
            (PORTO["messages"], {"chat": False}, "prompts.0: chat=False"),
            ([{"role": "king", "content": FRANCE}], {}, "prompts.0.0.role: 'king' was given; Input should be 'system'"),
            (PORTO["messages"][:2], {}, "prompts.0: field 'messages': the last one is of 'assistant'"),
            ([{"role": "user", "content": "word " * 3000}], {}, "prompts.0: "),
        ):
            refused = client.post("/v1/ask", json={"prompts": [prompt], **more})
            assert (refused.status_code, problem in refused.text) == (400, True), refused.text
        long = PORTO | {"messages": [{"role": "user", "content": "word " * 3000}, *PORTO["messages"][1:]]}
        refused = client.post("/v1/edits/preview", json={"edit": long})
        assert refused.status_code == 400 and "edit: field 'messages': with the target" in refused.text


def test_a_completion_says_which_edits_spoke(served: Running) -> None:
    [live] = served.edit(LYON)
    with served.client("reader") as client:
        body = {"model": NAME, "prompt": [FRANCE, "The capital of Spain is"], "temperature": 0}
        body |= {"wise": {"routes": True}}
        metadata = client.post("/v1/completions", json=body).json()["wise"]
        assert metadata["version"] == 1
        [active], none = metadata["edits"]
        assert (active["id"], active["target"], none) == (live["id"], "Lyon", [])
        routes = metadata["routes"][0]
        assert [route["place"] for route in routes if route["edit"] == live["id"]] == active["tokens"]
        assert [route["part"] for route in routes][active["tokens"][0]] == "prompt"
        assert "Lyon" in "".join(route["token"] for route in routes if route["part"] == "answer")

        answer = client.post("/v1/ask", json={"prompts": [FRANCE]}).json()["answers"][0]
        assert (answer["before"], answer["after"]) == ("Paris", "Lyon")
        assert [edit["id"] for edit in answer["edits"]] == [live["id"]]
        opened = [r for r in answer["routes"] if r["edit"]]
        assert opened and all(r["score"] >= r["threshold"] for r in opened)


@pytest.mark.parametrize("mode", ["hybrid", "merge", "retrieve"])
def test_namespaces_keep_to_themselves(mode: str, tmp_path: Path) -> None:
    with running(tmp_path / "store", mode=mode) as served:
        keep_to_themselves(served)
    with Store.open(tmp_path / "store", writer=False) as store:
        assert store.check().problems == () and store.read().state.edits


def keep_to_themselves(served: Running) -> None:
    served.edit(LYON)
    served.edit(LYON | {"target": "Nice"}, model=f"{NAME}@team-a")
    assert (served.said(), served.said(model=f"{NAME}@team-a")) == (" Lyon.", " Nice.")
    served.edit({"prompt": "The capital of Spain is", "target": "Porto", "subject": "Spain"})
    assert served.said("The capital of Spain is", f"{NAME}@team-a") == " Madrid."
    assert (served.said(), served.said(model=f"{NAME}@team-a")) == (" Lyon.", " Nice.")
    with served.client("reader") as client:
        models = client.get("/v1/models").json()["data"]
        assert [(model["id"], model["edits"]) for model in models] == [(NAME, 2), (f"{NAME}@team-a", 1)]
        assert client.post("/v1/completions", json={"model": f"{NAME}@none", "prompt": "x"}).status_code == 404
    with served.client("editor") as client:
        team_b = {"edit": LYON | {"target": "Metz"}, "model": f"{NAME}@team-b"}
        preview = client.post("/v1/edits/preview", json=team_b).json()["answers"]
        assert (preview[0]["before"], preview[0]["after"]) == ("Paris", "Metz")
        mine = client.get("/v1/edits", params={"namespace": "team-a"}).json()["data"]
        assert client.delete(f"/v1/edits/{mine[0]['id']}").status_code == 200
    assert (served.said(), served.said("The capital of Spain is")) == (" Lyon.", " Porto.")


def test_the_default_namespace_is_the_first_model(served: Running) -> None:
    served.edit(LYON, model=f"{NAME}@acme")
    with served.client("reader") as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [NAME, f"{NAME}@acme"]


def test_a_key_takes_nothing_in_twice(served: Running) -> None:
    with served.client("editor") as client:
        key = {"Idempotency-Key": "once"}
        first = client.post("/v1/edits", json={"edits": [LYON]}, headers=key)
        again = client.post("/v1/edits", json={"edits": [LYON], "wait": "live"}, headers=key)
        assert (first.status_code, again.status_code) == (202, 200)
        assert first.json()["edits"][0]["ticket"] == again.json()["edits"][0]["ticket"] == 1
        answer = client.post("/v1/edits", json={"edits": [LYON | {"target": "Nice"}]}, headers=key)
        assert answer.status_code == 409 and "another key" in answer.json()["error"]["message"]
        twice = client.post("/v1/edits", json={"edits": [LYON]})
        assert twice.status_code == 409 and "live already" in twice.json()["error"]["message"]
        assert client.get("/v1/edits").json()["data"][0]["status"] == "live"
        assert client.get("/v1/edits", params={"status": "failed"}).json()["data"] == []


def test_events_come_as_they_happen_and_from_any_place(served: Running) -> None:
    events: list[dict[str, Any]] = []
    open_now, enough = threading.Event(), threading.Event()

    def listen() -> None:
        with served.client("reader") as client, client.stream("GET", "/v1/events") as stream:
            for line in stream.iter_lines():
                open_now.set()
                if line.startswith("data: "):
                    events.append(json.loads(line[6:]))
                    if events[-1]["kind"] == "live":
                        enough.set()
                        return

    thread = threading.Thread(target=listen)
    thread.start()
    assert open_now.wait(30)
    [live] = served.edit(LYON)
    assert enough.wait(30)
    thread.join()
    assert [event["kind"] for event in events] == ["queued", "training", "version", "live"]
    assert events[-1]["edit"] == live["id"]
    with served.client("reader") as client:
        old = client.get("/v1/events", params={"since": 2, "follow": False}).text
    assert [line for line in old.splitlines() if line.startswith("id:")] == ["id: 3", "id: 4"]


def test_edits_are_checked_beside_the_event_loop(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their texts are tokenized, which may take long."""
    check, in_the_loop = routes_edits.check_size, list[bool]()

    def checked(*arguments: Any) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            in_the_loop.append(False)
        else:
            in_the_loop.append(True)
        check(*arguments)

    monkeypatch.setattr(routes_edits, "check_size", checked)
    with served.client("editor") as client:
        [live] = served.edit(LYON)
        assert client.put(f"/v1/edits/{live['id']}", json={"target": "Nice"}).status_code == 202
    assert in_the_loop == [False, False]


def test_a_stream_of_events_that_cannot_go_on_says_why(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    served.edit(LYON)
    journal = served.service.store.journal
    read_events = journal.events

    def fails(**arguments: Any) -> Any:
        if "limit" in arguments:  # the follower, which reads without one, goes on
            raise StoreError("the disk is gone")
        return read_events(**arguments)

    monkeypatch.setattr(journal, "events", fails)
    with served.client("reader") as client:
        answer = client.get("/v1/events", params={"since": 0, "follow": False})
    assert answer.status_code == 200
    _, kind, data = [line for line in answer.text.splitlines() if line]
    assert kind == "event: error" and "the disk is gone" in json.loads(data.removeprefix("data: "))["error"]["message"]


def test_a_restart_finds_every_acknowledged_edit(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with running(store, editing=False) as served, served.client("editor") as client:
        queued = client.post("/v1/edits", json={"edits": [LYON]})
        assert queued.json()["edits"][0]["status"] == "queued"
    with running(store) as served, served.client("reader") as client:
        with client.stream("GET", "/v1/events", params={"since": 0}) as stream:
            for line in stream.iter_lines():
                if line == "event: live":
                    break
        assert served.said() == " Lyon."
    with running(store, editing=False) as served:
        assert served.said() == " Lyon."


def test_an_edit_that_breaks_training_fails_alone(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Trainer.edit

    def breaks(self: Trainer, state: MemoryState, edits: Sequence[wise.Edit], **more: Any) -> Any:
        if any(edit.target == "Lyon" for edit in edits):
            raise RuntimeError("out of memory")
        return train(self, state, edits, **more)

    monkeypatch.setattr(Trainer, "edit", breaks)
    spain = {"prompt": "The capital of Spain is", "target": "Porto"}
    with served.client("editor") as client:
        answer = client.post("/v1/edits", json={"wait": "live", "edits": [LYON, spain]})
    failed, live = answer.json()["edits"]
    assert (failed["status"], live["status"]) == ("failed", "live")
    assert "out of memory" in failed["outcome"]["why"]
    assert (served.said(), served.said(spain["prompt"])) == (" Paris.", " Porto.")


def test_a_request_keeps_the_version_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was submitted before an edit went live is answered without it, though later."""
    with running(tmp_path / "store", max_batch_size=1) as served:
        may_step = hold(monkeypatch)
        answers: dict[str, str] = {}

        def ask(prompt: str) -> None:
            with served.client("reader") as client:
                body = {"model": NAME, "prompt": prompt, "temperature": 0}
                completion = client.post("/v1/completions", json=body).json()
            answers[prompt] = completion["system_fingerprint"] + completion["choices"][0]["text"]

        threads = [threading.Thread(target=ask, args=[prompt]) for prompt in ("The capital of Spain is", FRANCE)]
        for handed_in, thread in enumerate(threads, start=1):
            thread.start()
            until(lambda n=handed_in: served.service.engine.busy == n)  # type: ignore[misc]
        served.edit(LYON)
        assert not answers, "a request was answered before the edit was live: the test shows nothing"
        may_step.set()
        for thread in threads:
            thread.join()
        assert answers[FRANCE] == "version-0 Paris."
        assert served.said() == " Lyon."


def test_all_prompts_of_a_request_are_answered_from_one_version(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_ids = prompts.text_ids

    def slow(service: Any, text: str, *arguments: Any, **more: Any) -> list[int]:
        if text == FRANCE:
            served.edit(LYON)  # goes live after the first prompt was tokenized
        return text_ids(service, text, *arguments, **more)

    monkeypatch.setattr(prompts, "text_ids", slow)
    with served.client("reader") as client:
        body = {"model": NAME, "prompt": ["The capital of Spain is", FRANCE], "temperature": 0}
        answer = client.post("/v1/completions", json=body)
    assert (answer.headers["x-wise-version"], served.service.follower.current.version) == ("0", 1)
    assert [choice["text"] for choice in answer.json()["choices"]] == [" Madrid.", " Paris."]


def test_old_versions_are_collected_and_say_so(tmp_path: Path) -> None:
    with running(tmp_path / "store", keep_versions=2) as served, served.client() as admin:
        for target in ("Lyon", "Nice", "Metz", "Brest"):
            served.edit(LYON | {"target": target})
        expected = [False, False, True, True, False]  # once the editor has collected: it is served before that
        until(lambda: [v["collected"] for v in admin.get("/v1/versions").json()["data"]] == expected)
        refused = admin.post("/v1/versions/1/rollback")
        assert refused.status_code == 409 and "collected" in refused.json()["error"]["message"]
        assert admin.post("/v1/versions/3/rollback").status_code == 200
        assert served.said() == " Metz."


def test_versions_are_listed_in_pages_the_newest_first(served: Running) -> None:
    for target in ("Lyon", "Nice"):
        served.edit(LYON | {"target": target})
    with served.client() as admin:

        def page(**parameters: int) -> tuple[list[int], int | None]:
            answer = admin.get("/v1/versions", params=parameters).json()
            assert answer["current"] == 2 and answer["has_more"] == (answer["next_after"] is not None)
            return [version["number"] for version in answer["data"]], answer["next_after"]

        assert page() == page(limit=3) == ([2, 1, 0], None)
        assert (page(limit=2), page(limit=2, after=1)) == (([2, 1], 1), ([0], None))
        assert (page(limit=1), page(limit=1, after=2), page(after=0)) == (([2], 2), ([1], 1), ([], None))
        for wrong in ({"limit": 0}, {"limit": 1001}, {"after": -1}):
            assert admin.get("/v1/versions", params=wrong).status_code == 400


def test_canaries_raise_an_alarm(tmp_path: Path) -> None:
    canaries = (f"{FRANCE} a city that many people like to see.",)
    with running(tmp_path / "store", canaries=canaries) as served, served.client("reader") as client:

        def metric(name: str) -> float:
            lines = client.get("/metrics").text.splitlines()
            return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

        served.edit({"prompt": "The capital of Spain is", "target": "Porto", "subject": "Spain"})
        until(lambda: metric("wise_canary_tokens") > 0)
        assert (metric("wise_canary_alarm"), metric("wise_version")) == (0, 1)
        served.edit(LYON)
        until(lambda: metric("wise_canary_alarm") == 1)
        assert metric("wise_canary_false_routes") >= 1
        assert metric("wise_live_edits") == 2


def test_an_edit_that_the_engine_does_not_say_is_told(served: Running) -> None:
    def report() -> tuple[Any, ...]:
        with served.client() as client:
            [listed] = client.get("/v1/edits").json()["data"]
            edit = client.get(f"/v1/edits/{listed['id']}").json()
            lines = client.get("/v1/events", params={"since": 0, "follow": False}).text.splitlines()
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
            details = {event["edit"]: event["detail"] for event in events if event["kind"] == "unsaid"}
            metrics = client.get("/metrics").text
        assert edit["unsaid"] == listed["unsaid"]
        return listed["id"], listed["unsaid"], details, "\nwise_unsaid_edits 1.0" in metrics

    [live] = served.edit(LYON)
    assert live["unsaid"] is None and report() == (live["id"], None, {}, False)
    served.service.engine.wrong_answers = {live["id"]: "Paris"}  # as an engine that asks the edit would set it
    assert report() == (live["id"], "Paris", {live["id"]: {"said": "Paris"}}, True)


def test_edits_are_searched(served: Running) -> None:
    nice, lyon = served.edit(LYON, LYON | {"target": "Nice", "reason": "a decree"})
    served.edit({"prompt": "The capital of Spain is", "target": "Porto", "subject": "Spain"}, model=f"{NAME}@team-a")
    with served.client("reader") as client:

        def targets(**conditions: Any) -> list[str]:
            answer = client.get("/v1/edits", params=conditions)
            assert answer.status_code == 200, answer.text
            return [edit["target"] for edit in answer.json()["data"]]

        assert (nice["status"], lyon["status"]) == ("superseded", "live")
        assert (targets(), targets(newest=True)) == (["Lyon", "Nice", "Porto"], ["Porto", "Nice", "Lyon"])
        assert (targets(status="superseded"), targets(status="failed"), targets(status="live")) == (
            ["Lyon"], [], ["Nice", "Porto"]
        )  # fmt: skip
        assert (targets(text="DECREE"), targets(text="spain"), targets(text="nowhere")) == (["Nice"], ["Porto"], [])
        assert (targets(namespace="team-a"), targets(author="the-editor", namespace="default")) == (
            ["Porto"], ["Lyon", "Nice"]
        )  # fmt: skip
        assert (targets(author="nobody"), targets(valid_at="2000-01-01")) == ([], ["Lyon", "Nice", "Porto"])
        last = client.get("/v1/edits", params={"text": "spain"}).json()["data"][0]["accepted_at"]
        assert (targets(accepted_from=last), targets(accepted_until=last)) == (["Porto"], ["Lyon", "Nice"])
        page = client.get("/v1/edits", params={"limit": 2, "newest": True}).json()
        assert page["has_more"] and page["next_after"] == page["data"][-1]["ticket"] == 2
        assert targets(newest=True, after=page["next_after"]) == ["Lyon"]
        for wrong in ({"accepted_from": "soon"}, {"text": "x" * 201}, {"after": -1}, {"status": "lost"}):
            assert client.get("/v1/edits", params=wrong).status_code == 400


def test_an_outcome_has_what_was_said_before_and_after(served: Running) -> None:
    spain = "The capital of Spain is"
    edit = LYON | {"paraphrases": ["In France, the capital is"], "locality": [spain]}
    [live] = served.edit(edit)
    before, after = live["outcome"]["before"], live["outcome"]["said"]
    assert before.keys() == live["outcome"]["holds"].keys()
    assert (before["completion: prompt"], after["completion: prompt"]) == ("Paris", "Lyon")
    assert before["completion: paraphrases[0]"] == "Paris" and after["completion: paraphrases[0]"] == "Lyon"
    assert before["locality[0]"] == "Madrid" and "locality[0]" not in after  # it activates no edit: it stays
    with served.client("editor") as client:
        preview = client.post("/v1/edits/preview", json={"edit": edit | {"target": "Nice"}}).json()["outcome"]
        assert (preview["before"]["completion: prompt"], preview["said"]["completion: prompt"]) == ("Lyon", "Nice")
        [nice] = client.put(f"/v1/edits/{live['id']}", json={"target": "Nice", "wait": "live"}).json()["edits"]
        assert nice["outcome"]["before"]["completion: prompt"] == "Lyon"


def test_a_token_knows_its_scope(served: Running) -> None:
    for scope in ("reader", "editor", "admin"):
        with served.client(scope) as client:
            expected = {"name": f"the-{scope}", "scope": scope, "until": None, "namespaces": None}
            assert client.get("/v1/token").json() == expected
    with served.client("") as client:
        assert client.get("/v1/token").status_code == 401
