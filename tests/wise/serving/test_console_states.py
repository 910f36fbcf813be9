"""The states of the console: each shows what it is and what to do. Tests fake rare ones in the service's answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from browsing import browsing, capital, needs_browser, notice, opened
from playwright.sync_api import Browser, Dialog, Page, Route, expect
from serving import Running, running

from wise.serving.auth import Holder, Tokens, token_digest

pytestmark = needs_browser
AT = "2026-01-31T12:00:00Z"
PAGE = {"data": [], "has_more": False, "next_after": None}
EDITOR = {"state": "ready", "why": None, "stage": None, "seconds": 1.0, "training": [], "done": 0, "previews": 0}
STATUS = {"answering": None, "editing": None, "store": None, "version": 0, "edits": 0, "namespaces": 1}
OUTCOME = {
    "status": "partial",
    "answer": "Lyon",
    "holds": {"prompt": True, "locality[0]": False},
    "said": {"prompt": "Lyon", "locality[0]": "Lyon"},
    "before": {"prompt": "Madrid", "locality[0]": "Lisbon"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("states") / "store") as service:
        yield service


def an_edit(ticket: int, status: str, **more: Any) -> dict[str, Any]:
    """An edit as the service shows it."""
    lists: dict[str, Any] = dict.fromkeys(("aliases", "messages", "paraphrases", "locality"), [])
    unset = dict.fromkeys(
        ("subject", "reason", "valid_from", "valid_until", "live_in", "retired_in", "outcome", "unsaid", "problem")
    )
    texts = {"prompt": f"Question {ticket}", "target": "Lyon", "namespace": "default", "author": "ann"}
    numbers = {"id": f"e{ticket}", "ticket": ticket, "status": status, "accepted_at": AT}
    return lists | unset | texts | numbers | more


def show_edits(page: Page, *edits: dict[str, Any], why: str | None = None) -> None:
    """Makes these the edits of the service. why: of the last event of each."""

    def show_edit(route: Route) -> None:
        edit = next(edit for edit in edits if route.request.url.endswith(f"/{edit['id']}"))
        event = {"number": 1, "at": AT, "kind": edit["status"], "edit": edit["id"], "ticket": 1}
        route.fulfill(json=edit | {"events": [event | {"version": None, "author": None, "detail": {"why": why}}]})

    page.route("**/v1/edits?*", lambda route: route.fulfill(json=PAGE | {"data": edits}))
    page.route("**/v1/edits/e*", show_edit)
    page.reload()
    expect(page.locator("#list > li")).to_have_count(len(edits))
    page.click("#tab-edits")


def refused(message: str, status: int = 409) -> Any:
    return lambda route: route.fulfill(status=status, json={"error": {"message": message}})


# -- 1. who is there --------------------------------------------------------------------------------


def test_without_a_token_there_is_only_the_sign_in(browser: Browser, served: Running) -> None:
    with opened(browser, served, token="") as page:
        expect(page.locator("#access")).to_be_visible()
        expect(page.locator("#access")).to_contain_text("wise token")
        expect(notice(page)).to_have_count(0)  # nothing is wrong yet
        assert page.locator("[role=tab]:visible, [role=tabpanel]:visible").count() == 0
        page.fill("#token", "editor")
        page.press("#token", "Enter")
        expect(page.locator("#chat")).to_be_visible()
        expect(page.locator("#access")).to_be_hidden()
        page.reload()  # the tab keeps its token
        expect(page.locator("#holder")).to_have_text("the-editor (editor)")
        page.click("#leave")
        expect(page.locator("#access")).to_be_visible()
        page.reload()
        expect(page.locator("#access")).to_be_visible()
        expect(page.locator("#holder")).to_be_hidden()


@pytest.mark.parametrize("wanted", [False, True])
def test_a_link_signs_in_only_whoever_wants_that(browser: Browser, served: Running, wanted: bool) -> None:
    page, asked = browser.new_page(), list[str]()

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept() if wanted else dialog.dismiss()

    page.on("dialog", answer)
    page.goto(f"{served.url}/console#reader")
    if wanted:
        expect(page.locator("#holder")).to_have_text("the-reader (reader)")
    else:
        expect(page.locator("#access")).to_be_visible()
    assert len(asked) == 1 and "a token that somebody put into it" in asked[0] and "reader" not in page.url
    assert page.locator("#chat").is_visible() == wanted
    page.close()


def test_a_token_that_ends_is_asked_for_again_and_what_was_written_stays(browser: Browser, served: Running) -> None:
    problem = {"error": {"message": "the token of the-admin expired"}}
    with opened(browser, served) as page:
        page.route("**/v1/events*", lambda route: route.fulfill(
            content_type="text/event-stream", body=f"event: error\ndata: {json.dumps(problem)}\n\n"))  # fmt: skip
        page.reload()
        expect(notice(page)).to_contain_text("the token of the-admin expired")
        assert page.locator("#events li").count() == 0  # it is no event of an edit
        page.fill("#prompt", "The capital of France is")
        page.route("**/v1/models", refused("the token of the-admin expired", 401))
        expect(page.locator("#access")).to_be_visible()
        expect(page.locator("#editing")).to_be_hidden()
        page.unroute_all()
        page.fill("#token", "admin")
        page.press("#token", "Enter")
        expect(page.locator("#status")).to_have_class("dot on")
        expect(page.locator("#prompt")).to_have_value("The capital of France is")
        expect(notice(page)).to_have_count(0)


def test_a_service_that_is_not_there_yet_is_asked_again(browser: Browser, served: Running) -> None:
    page = browser.new_page()
    page.on("dialog", lambda dialog: dialog.accept())
    page.route("**/v1/token", lambda route: route.abort())
    page.goto(f"{served.url}/console#reader")
    expect(notice(page)).to_contain_text("cannot be reached")
    page.unroute_all()
    expect(page.locator("#status")).to_have_class("dot on")
    expect(notice(page)).to_have_count(0)
    page.close()


def test_a_token_of_a_namespace_sees_no_more(
    browser: Browser, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.edit(capital("Egypt", "Metz"), model=f"{served.service.name}@team-a")
    bound = Holder(name="ann", scope="admin", namespaces=frozenset({"team-a"}))
    with opened(browser, served) as page:
        page.click("#tab-history")
        page.route("**/v1/versions?*", refused("the token is bound to namespaces", 403))
        served.edit(capital("Egypt", "Nice"))  # the versions are requested again
        expect(page.locator("#chat")).to_be_visible()
        monkeypatch.setattr(served.service, "tokens", Tokens([(bound, token_digest("admin"))]))
        page.reload()
        expect(page.locator("#holder")).to_have_text("ann (admin)")
        expect(page.locator("#tab-history")).to_be_hidden()
        expect(page.locator("#tab-service")).to_be_hidden()
        expect(page.locator("#chat")).to_be_visible()
        page.click("#tab-edits")
        expect(page.locator("#list .what b")).to_have_text(["Metz"])
        expect(page.locator("#state")).to_have_text("Questions are answered.")


# -- 2. what the service does -----------------------------------------------------------------------


@pytest.mark.slow
def test_what_the_service_does_not_do_is_said(browser: Browser, served: Running) -> None:
    now = STATUS | {"editor": EDITOR | {"restarts": 0}}
    with opened(browser, served) as page:
        page.route("**/v1/status", lambda route: route.fulfill(json=now))
        expect(page.locator("#editor")).to_have_text("editor ready")
        expect(page.locator("#not-editing")).to_be_hidden()
        now |= {"editing": "the editor was not heard of for 64 s"}
        now["editor"] = EDITOR | {"restarts": 3, "training": ["e1"]}
        expect(page.locator("#editor")).to_have_text("editor silent")
        expect(page.locator("#not-editing")).to_have_text("New edits wait: the editor was not heard of for 64 s.")
        expect(notice(page)).to_have_count(0)  # questions are answered
        now |= {"answering": "the engine has ended", "store": "version 4 is damaged"}
        expect(notice(page)).to_contain_text("Questions are not answered: the engine has ended.")
        page.get_by_role("button", name="Dismiss").click()
        page.click("#tab-service")
        expect(page.locator("#state")).to_contain_text("Store: version 4 is damaged.")
        expect(page.locator("#state")).to_contain_text("started again: 3 times")
        with page.expect_response("**/v1/status"), page.expect_response("**/metrics"):
            pass
        expect(notice(page)).to_have_count(0)  # a dismissed problem that has not changed stays hidden
        now |= {"answering": "the service is about to end", "editing": None, "store": None}
        expect(notice(page)).to_contain_text("about to end")
        expect(page.locator("#editor")).to_have_text("training 0 of 1")
        now |= {"answering": None}
        expect(notice(page)).to_have_count(0)


def test_an_answer_that_was_cut_off_says_why(browser: Browser, served: Running) -> None:
    wise = {"version": 3, "edits": [[]], "routes": [[]], "finish_reasons": ["deadline"]}
    chunk = {"choices": [{"index": 0, "text": "Paris", "finish_reason": "length"}], "wise": wise}
    with opened(browser, served) as page:
        page.route("**/v1/completions", lambda route: route.fulfill(
            content_type="text/event-stream", body=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"))  # fmt: skip
        page.fill("#words", "The capital of France is")
        page.click("#send")
        expect(page.locator("#turns .meta")).to_contain_text("its time was over")
        wise["finish_reasons"] = ["length"]
        page.fill("#words", "The capital of France is")
        page.click("#send")
        expect(page.locator("#turns .meta").last).to_contain_text("at the longest answer")


def test_a_connection_that_is_lost_is_said_in_words(browser: Browser, served: Running) -> None:
    with opened(browser, served) as page:
        page.evaluate(
            "() => { const real = fetch; window.fetch = (path, options) => !path.includes('/completions') ? "
            "real(path, options) : Promise.resolve(new Response(new ReadableStream({ "
            "pull(stream) { stream.error(new TypeError('Error in input stream')); } }))); }"
        )
        page.fill("#words", "The capital of France is")
        page.click("#send")
        expect(notice(page)).to_contain_text("The connection to the service was lost")
        expect(page.locator("#words")).to_have_value("The capital of France is")  # nothing came: it can be sent again


# -- 3. edits ---------------------------------------------------------------------------------------


def test_each_state_of_an_edit_is_told_apart(browser: Browser, served: Running) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Question 7"}]
    with opened(browser, served) as page:
        show_edits(
            page,
            an_edit(7, "queued", messages=turns, subject="Spain"),
            an_edit(6, "live", outcome=OUTCOME | {"holds": {"prompt": True}}),
            an_edit(5, "live", unsaid="Madrid"),
            an_edit(4, "live", outcome=OUTCOME, locality=["The capital of Portugal is"]),
            an_edit(3, "retired"),
            an_edit(2, "retired", prompt="(erased)", target="(erased)"),
            an_edit(1, "failed", problem="the journal is damaged at ticket 1"),
            why="expired",
        )
        items = page.locator("#list > li")
        chips = [" ".join(item.locator("summary .chip:visible").all_inner_texts()) for item in items.all()]
        assert chips == ["queued", "live", "live not said", "live in part", "retired", "erased", "damaged"]
        expect(items.nth(2)).to_contain_text("this engine says “Madrid” in its place")
        expect(items.nth(6)).to_contain_text("the journal is damaged at ticket 1")
        for place in (0, 3, 4):
            items.nth(place).locator("summary").click()
        expect(items.nth(0).locator("dd")).to_have_text(["Spain", "system: Be brief.\nuser: Question 7"])
        expect(items.nth(0)).to_contain_text("It waits to be trained.")
        expect(items.nth(3).locator("td.broken")).to_have_text("Lyon")
        expect(items.nth(4).locator(".steps")).to_contain_text("expired")
        expect(items.nth(4)).not_to_contain_text("It waits")


def test_a_store_without_edits_says_so(browser: Browser, served: Running) -> None:
    with opened(browser, served) as page:
        page.route("**/v1/edits?*", lambda route: route.fulfill(json=PAGE))
        page.click("#tab-edits")
        page.click("#search")
        expect(page.locator("#found")).to_have_text("There are no edits yet.")
        page.fill("#by-text", "Spain")
        page.click("#search")
        expect(page.locator("#found")).to_have_text("No edit was found.")


def test_a_search_goes_on_as_it_was_begun_while_another_is_typed(browser: Browser, served: Running) -> None:
    with opened(browser, served) as page:
        page.click("#tab-edits")
        page.fill("#by-text", "Sweden")
        page.click("#search")
        page.fill("#by-text", "Finland")
        for country in ("Finland", "Sweden"):
            served.edit(capital(country, "Lyon"))
        expect(page.locator("#list .what")).to_have_text(["The capital of Sweden is → Lyon"])
        page.click("#search")
        expect(page.locator("#list .what")).to_have_text(["The capital of Finland is → Lyon"])


def test_each_event_has_a_line_of_its_own(
    browser: Browser, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WrongAnswers(dict[str, str]):
        def get(self, *_: Any) -> Any:
            return "Madrid"

    monkeypatch.setattr(served.service.engine, "wrong_answers", WrongAnswers())
    with opened(browser, served) as page:
        for number, country in enumerate(("Greece", "Turkey"), start=1):
            served.edit(capital(country, "Lyon"))
            kinds = ["unsaid", "live", "version", "training", "queued"]  # the first two have one number
            expect(page.locator("#events .chip")).to_have_text(kinds * number)


def test_what_becomes_of_a_replacement_is_told(browser: Browser, served: Running) -> None:
    served.edit(capital("Japan", "Lyon"))
    with opened(browser, served) as page:
        page.click("#tab-edits")
        item = page.locator("#list li[data-status=live]", has_text="Japan")
        item.locator("summary").click()
        item.get_by_role("button", name="Replace").click()
        page.keyboard.type("Nice")
        page.keyboard.press("Enter")
        expect(notice(page, "done")).to_contain_text("“The capital of Japan is” → “Nice”, is live")


def test_a_preview_is_cancelled_and_a_bad_one_is_not_committed(browser: Browser, served: Running) -> None:
    [live] = served.edit(capital("Kenya", "Lyon"))
    routes: list[Route] = []
    with opened(browser, served) as page:
        page.route("**/v1/edits/preview", lambda route: routes.append(route))
        page.fill("#prompt", live["prompt"])
        page.fill("#target", "Nice")
        expect(page.locator("#cancel")).to_be_hidden()
        page.click("#preview")
        expect(page.locator("#preview")).to_be_disabled()
        with page.expect_event("requestfailed") as failure:
            page.click("#cancel")
        assert failure.value.url.rpartition("/")[2] == "preview"
        expect(page.locator("#preview")).to_be_enabled()
        expect(page.locator("#cancel")).to_be_hidden()
        expect(notice(page)).to_have_count(0)
        bad = {"outcome": OUTCOME | {"status": "failed"}, "replaced": [live["id"]], "answers": []}
        page.unroute_all()
        page.route("**/v1/edits/preview", lambda route: route.fulfill(json=bad))
        page.click("#preview")
        expect(page.locator("#previewed")).to_contain_text("It would replace “The capital of Kenya is → Lyon”.")
        expect(page.locator("#commit")).to_be_disabled()
        bad["outcome"] = OUTCOME
        page.click("#preview")
        expect(page.locator("#commit")).to_be_enabled()
        page.unroute_all()
        page.route("**/v1/edits/preview", lambda route: routes.append(route))
        with page.expect_request("**/v1/edits/preview"):
            page.click("#preview")
        page.fill("#target", "Metz")  # while the preview runs: this target was not previewed
        routes[-1].fulfill(json=bad)
        expect(page.locator("#previewed")).to_contain_text("changed since")
        expect(page.locator("#commit")).to_be_disabled()


def test_a_commit_that_failed_is_tried_again_only_as_it_was_previewed(browser: Browser, served: Running) -> None:
    good = {"outcome": OUTCOME, "replaced": [], "answers": []}
    routes: list[Route] = []
    with opened(browser, served) as page:
        page.route("**/v1/edits/preview", lambda route: route.fulfill(json=good))
        page.route("**/v1/edits", lambda route: routes.append(route))
        page.fill("#prompt", "The capital of Kenya is")
        page.fill("#target", "Nice")
        page.click("#preview")
        for changed, again in (("#probes", True), ("#target", False)):  # a target that was not previewed
            with page.expect_request("**/v1/edits"):
                page.click("#commit")
            page.fill(changed, "Metz")
            refused("the store is busy", 503)(routes[-1])
            expect(notice(page)).to_contain_text("the store is busy")
            expect(page.locator("#commit")).to_be_enabled(enabled=again)


def test_edits_go_where_they_were_previewed_and_read_for(
    browser: Browser, served: Running, tmp_path: Path
) -> None:
    name = served.service.name
    file = tmp_path / "ours.jsonl"
    file.write_text(json.dumps(capital("Chile", "Lyon")) + "\n")
    [only] = served.edit(capital("Egypt", "Lyon"), model=f"{name}@acme")
    bodies: list[Any] = []

    def note(route: Route) -> None:
        bodies.append(route.request.post_data_json["model"])
        refused("not now")(route)

    with opened(browser, served) as page:
        page.route("**/v1/edits", note)
        page.route("**/v1/edits/preview", lambda route: route.fulfill(
            json={"outcome": OUTCOME, "replaced": [], "answers": []}))  # fmt: skip
        expect(page.locator("#space")).to_have_value(name)  # although another name comes first
        page.select_option("#space", f"{name}@acme")
        page.fill("#prompt", "The capital of Kenya is")
        page.fill("#target", "Nice")
        page.click("#preview")
        expect(page.locator("#commit")).to_be_enabled()
        with page.expect_response("**/v1/models"), served.client() as client:  # another client deletes its last edit
            client.delete(f"/v1/edits/{only['id']}")
        expect(page.locator("#version")).to_have_text(f"version {served.service.follower.current.version}")
        expect(page.locator("#space")).to_have_value(f"{name}@acme")
        page.click("#commit")
        expect(notice(page)).to_contain_text("not now")
        page.click("#tab-edits")
        page.set_input_files("#import-file", file)
        expect(page.locator("#import")).to_contain_text("into the namespace acme")
        page.select_option("#space", name)
        page.click("#import button:text('Submit 1 edit')")
        expect(page.locator("#import button:text('Submit the remaining 1')")).to_be_visible()
        assert bodies == [f"{name}@acme"] * 2


# -- 4. files and versions --------------------------------------------------------------------------


def test_an_import_that_was_cut_off_goes_on_and_submits_nothing_twice(
    browser: Browser, served: Running, tmp_path: Path
) -> None:
    file, wrong = tmp_path / "ours.jsonl", tmp_path / "wrong.jsonl"
    file.write_text("".join(json.dumps(capital(name, "Lyon")) + "\n" for name in ("Chile", "Peru")))
    wrong.write_text('{"prompt": "x"}\n')

    def lose_answer(route: Route) -> None:
        """The service accepts the edits, and its answer is lost."""
        route.fetch()
        route.abort()

    def count() -> int:
        with served.client() as client:
            return len(client.get("/v1/edits", params={"limit": 1000}).json()["data"])

    before = count()
    with opened(browser, served) as page:
        page.click("#tab-edits")
        page.set_input_files("#import-file", wrong)
        expect(notice(page)).to_contain_text("wrong.jsonl cannot be imported, and nothing was submitted: line 1")
        page.set_input_files("#import-file", file)
        page.route("**/v1/edits", lose_answer)
        page.click("#import button:text('Submit 2 edits')")
        expect(notice(page)).to_contain_text("cannot be reached")
        expect(page.locator("#import")).to_contain_text("0 of 2 submitted")
        expect(page.locator("#import button:text('Close')")).to_be_visible()
        assert count() == before + 2
        page.unroute_all()
        page.click("#import button:text('Submit the remaining 2')")
        expect(page.locator("#import")).to_contain_text("2 of 2 submitted, 2 live")
        expect(page.locator("#import button:visible")).to_have_text(["Close"])
        assert count() == before + 2


def test_what_was_compared_is_in_sight(browser: Browser, served: Running) -> None:
    for target in ("Lyon", "Nice", "Metz"):
        served.edit(capital("Canada", target))
    with opened(browser, served, size="phone") as page:
        page.click("#tab-history")
        page.get_by_role("button", name="Changes of version").first.click()
        expect(page.locator("#difference .plus")).to_contain_text("Metz")
        expect(page.locator("#difference")).to_be_in_viewport()
        page.fill("#after", "999")
        page.click("#compare button")
        expect(notice(page)).to_contain_text("no version 999")
        expect(page.locator("#difference")).to_be_empty()  # the former comparison is gone


def test_older_versions_are_read_when_they_are_wanted(browser: Browser, served: Running) -> None:
    requests: list[dict[str, int]] = []

    def give(route: Route) -> None:
        query = {name: int(value) for name, value in parse_qsl(urlsplit(route.request.url).query)}
        requests.append(query)
        first = query.get("after", 250) - 1
        numbers = range(first, max(-1, first - query["limit"]), -1)
        version = {"kind": "commit", "parent": 0, "at": AT, "author": "ann", "reason": None, "edits": 1}
        data = [version | {"number": number, "collected": False} for number in numbers]
        more = {"has_more": numbers[-1] > 0, "next_after": numbers[-1] or None}
        route.fulfill(json={"current": 249, "data": data} | more)

    with opened(browser, served) as page:
        page.route("**/v1/versions?*", give)
        page.reload()
        page.click("#tab-history")
        rows = page.locator("#versions > li")
        for count, pages in ((100, [{"limit": 100}]), (200, [{"limit": 100}, {"limit": 100, "after": 150}])):
            expect(rows).to_have_count(count)
            assert requests == pages  # no more than is shown
            requests.clear()
            page.click("#older")
        expect(rows).to_have_count(250)
        expect(rows.last).to_contain_text("0. commit")
        expect(page.locator("#older")).to_be_hidden()


def test_the_forms_of_an_edit_fit_a_phone(browser: Browser, served: Running) -> None:
    with opened(browser, served, size="phone") as page:
        show_edits(page, an_edit(1, "live", outcome=OUTCOME, locality=["The capital of Portugal is"]))
        page.locator("#list summary").click()
        expect(page.locator("table.forms")).to_be_visible()
        too_wide = "(table) => table.parentElement.scrollWidth > table.parentElement.clientWidth"
        assert not page.locator("table.forms").evaluate(too_wide)
        page.locator("table.forms").evaluate("(table) => (table.style.minWidth = '460px')")
        assert page.locator("table.forms").evaluate(too_wide)  # negative control
