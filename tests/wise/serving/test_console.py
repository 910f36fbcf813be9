"""The console in a real browser: a chat, edits and what they did, search, files, versions; for all eyes and hands.

All tests share a service; each edits the capital of a country of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import CONTRAST, SIZES, UNNAMED, ask, browsing, capital, needs_browser, notice, opened, shot, wide
from playwright.sync_api import Browser, Page, Request, expect
from serving import Running, hold, running
from waiting import until

pytestmark = needs_browser
CHATS = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("console") / "store", template=CHATS) as service:
        yield service


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A base without a chat template, and without an editor."""
    with running(tmp_path_factory.mktemp("plain") / "store", editing=False) as service:
        yield service


def requests_to(page: Page, path: str) -> list[dict[str, Any]]:
    """The bodies that the page sends to a path; the list grows with each request."""
    bodies: list[dict[str, Any]] = []

    def note(request: Request) -> None:
        if request.url.endswith(path) and request.method == "POST":
            bodies.append(request.post_data_json)

    page.on("request", note)
    return bodies


# -- 1. the chat ------------------------------------------------------------------------------------


def test_a_chat_streams_and_names_the_edit_that_wrote_its_words(browser: Browser, served: Running) -> None:
    [edit] = served.edit(capital("Spain", "Porto"))
    with opened(browser, served) as page:
        assert "admin" not in page.url  # the token is taken out of the address
        bodies = requests_to(page, "/v1/chat/completions")
        page.click("#chat-options summary")
        page.fill("#system", "Be brief.")
        page.evaluate(
            "() => { window.seen = new Set(); new MutationObserver(() => seen.add(document.querySelector("
            "'#turns .assistant .said')?.textContent)).observe(document.querySelector('#turns'), "
            "{ childList: true, subtree: true, characterData: true }); }"
        )
        ask(page, "The capital of Spain is")
        first = page.locator("#turns .assistant").first
        expect(first.locator("mark.spoke")).to_have_text("Porto.1")
        assert first.locator(".said").inner_text() == "Porto.1"
        assert len(page.evaluate("[...seen]")) >= 3, "the words came all at once"
        assert first.locator(".key").inner_text().strip().endswith("The capital of Spain is → Porto")
        ask(page, "The capital of Norway is")
        second = page.locator("#turns .assistant").nth(1)
        assert second.locator("mark.spoke").count() == 0  # negative control: no edit is about it
        expect(second.locator(".meta")).to_contain_text("only the base spoke")
        roles = [message["role"] for message in bodies[1]["messages"]]
        assert roles == ["system", "user", "assistant", "user"]
        assert bodies[1]["messages"][2]["content"].strip() == "Porto."

        first.locator("button", has_text="Without edits").click()
        expect(first.locator(".base")).to_be_visible()
        assert "Porto" not in first.locator(".base").inner_text()
        shot(page, "desk-light-chat")
        first.locator(".key button").click()  # traced to its edit
        opened_edit = page.locator(f"#list li[data-edit='{edit['id']}']")
        expect(opened_edit.locator("table.forms")).to_be_visible()
        page.click("#tab-chat")
        page.click("#clear")
        assert page.locator("#turns li").count() == 0


def test_an_answer_can_be_stopped(browser: Browser, served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(browser, served) as page:
        expect(page.locator("#stop")).to_be_hidden()
        may_step = hold(monkeypatch)
        page.fill("#words", "The capital of Norway is")
        page.click("#send")
        expect(page.locator("#stop")).to_be_visible()
        until(lambda: served.service.engine.busy == 1)
        page.click("#stop")
        expect(page.locator("#turns .meta")).to_have_text("stopped")
        expect(page.locator("#stop")).to_be_hidden()
        assert page.evaluate("document.activeElement.id") == "words"
        may_step.set()
        until(lambda: served.service.engine.busy == 0)
        ask(page, "The capital of Norway is")  # a question without an answer is not sent again with it
        assert page.locator("#turns .meta").last.inner_text() != "stopped"


ENDLESS = """() => {
  window.bodies = [];
  const real = fetch, begin = 'data: {"choices": [{"delta": {"content": "Oslo"}}]}\\n\\n';
  window.fetch = (path, options) => {
    if (!path.includes('/chat/completions')) return real(path, options);
    bodies.push(JSON.parse(options.body));
    return Promise.resolve(new Response(new ReadableStream({ start(stream) {
      stream.enqueue(new TextEncoder().encode(begin));
      options.signal.addEventListener('abort', () => stream.error(options.signal.reason));
    } })));
  };
}"""
"""Has the page chat with a service whose answers begin and do not end."""


def test_a_new_conversation_knows_nothing_of_the_answer_that_it_cut_off(browser: Browser, served: Running) -> None:
    with opened(browser, served) as page:
        page.evaluate(ENDLESS)
        for _ in range(2):
            page.fill("#words", "The capital of Norway is")
            page.click("#send")
            expect(page.locator("#turns .assistant .said")).to_have_text("Oslo")
            page.click("#clear")
            expect(page.locator("#send")).to_be_enabled()
        roles = page.evaluate("bodies.map((body) => body.messages.map((message) => message.role))")
        assert roles == [["user"], ["user"]]


def test_without_a_template_it_completes(browser: Browser, plain: Running) -> None:
    with opened(browser, plain) as page:
        bodies = requests_to(page, "/v1/completions")
        expect(page.locator("#chat-title")).to_have_text("Completions")
        expect(page.locator("#with-system")).to_be_hidden()
        for country in ("France", "Norway"):
            ask(page, f"The capital of {country} is")
        assert [body["prompt"] for body in bodies] == ["The capital of France is", "The capital of Norway is"]
        expect(page.locator("#turns .assistant .said").first).to_have_text("Paris.")


# -- 2. an edit and its forms -----------------------------------------------------------------------


@pytest.mark.parametrize("size", sorted(SIZES))
def test_an_edit_is_previewed_committed_and_shown_in_all_its_forms(
    browser: Browser, served: Running, size: str
) -> None:
    country, stays = {"desk": ("Italy", "Madrid"), "phone": ("Portugal", "Lisbon")}[size]
    with opened(browser, served, size=size) as page:
        expect(page.locator("#commit")).to_be_disabled()
        page.fill("#prompt", f"The capital of {country} is")
        page.fill("#target", "Lyon")
        page.fill("#subject", country)
        page.fill("#paraphrases", f"In {country}, the capital is")
        page.click("#edit details summary")
        page.fill("#locality", "The capital of Greece is")
        page.fill("#probes", "The capital of Norway is")
        version = page.inner_text("#version")
        page.click("#preview")
        expect(page.locator("#commit")).to_be_enabled()
        forms = rows(page, "#previewed")
        assert forms["Said"] and all(row[2:] == ["Lyon", "yes"] for row in forms["Said"] + forms["Wordings"])
        assert [row[1] for row in forms["Said"] if "completion" in row[0]] != ["Lyon"]
        [neighbour] = forms["Neighbours"]
        assert neighbour[2:] == ["unchanged", "yes"] and "The capital of Greece is" in neighbour[0]
        assert [row[2] for row in forms["Also asked"]] == ["unchanged"]
        assert page.inner_text("#version") == version  # nothing is changed yet
        shot(page, f"{size}-light-preview")
        page.click("#commit")
        expect(notice(page, "done")).to_contain_text("is live")
        page.click("#tab-edits")
        item = page.locator("#list li").first
        expect(item).to_have_attribute("data-status", "live")
        item.locator("summary").click()
        expect(item.locator("table.forms")).to_be_visible()
        details = rows(page, "#list li:first-child")
        assert {name: details[name] for name in ("Said", "Wordings", "Neighbours")} == {
            name: forms[name] for name in ("Said", "Wordings", "Neighbours")
        }
        expect(item.locator(".steps")).to_contain_text("training")
        assert not wide(page)
        shot(page, f"{size}-light-forms")


def rows(page: Page, place: str) -> dict[str, list[list[str]]]:
    """The rows of a table of forms, by their group."""
    groups: dict[str, list[list[str]]] = {}
    name = ""
    for row in page.locator(f"{place} table.forms tbody tr").all():
        cells = row.locator("td").all_inner_texts()
        if cells:
            groups[name].append(cells)
        else:
            name = row.inner_text().strip()
            groups[name] = []
    return groups


# -- 3. search --------------------------------------------------------------------------------------


def test_edits_are_searched_and_a_superseded_one_is_no_failure(browser: Browser, served: Running) -> None:
    served.edit(capital("Egypt", "Lyon"), capital("Egypt", "Nice", reason="a decree"))
    served.edit(capital("Egypt", "Metz"), model=f"{served.service.name}@team-a")
    with opened(browser, served) as page:
        page.click("#tab-edits")

        def prompts(**fields: str) -> list[str]:
            page.click("#reset")
            for name, value in fields.items():
                field = page.locator(f"#filters [name={name}]")
                field.select_option(value) if name == "status" else field.fill(value)
            with page.expect_response(lambda r: "/v1/edits?" in r.url and all(f in r.url for f in fields)):
                page.click("#search")
            expect(page.locator("#found")).not_to_have_text("Searching …")
            return page.locator("#list .what b").all_inner_texts()

        assert prompts(text="egypt") == ["Metz", "Nice", "Lyon"]
        assert prompts(text="egypt", status="superseded") == ["Lyon"]
        lyon = page.locator("#list li")
        expect(lyon.locator(".chip").first).to_have_text("superseded")
        expect(lyon).to_contain_text("a later edit took its place")
        assert prompts(text="egypt", status="failed") == []
        expect(page.locator("#found")).to_have_text("No edit was found.")
        assert prompts(text="DECREE") == ["Nice"]
        assert prompts(namespace="team-a") == ["Metz"]
        assert prompts(text="egypt", author="the-editor", valid_at="2020-01-01T00:00") == ["Metz", "Nice", "Lyon"]
        assert prompts(author="somebody") == []
        assert prompts(text="egypt", accepted_from="2001-01-01") == ["Metz", "Nice", "Lyon"]
        assert prompts(accepted_until="2001-01-01") == []
        shot(page, "desk-light-search")


def test_focus_and_open_parts_survive_what_happens(browser: Browser, served: Running) -> None:
    served.edit(capital("Japan", "Lyon"))
    with opened(browser, served) as page:
        page.click("#tab-edits")
        item = page.locator("#list li", has_text="Japan")
        item.locator("summary").click()
        expect(item.locator("table.forms")).to_be_visible()
        page.evaluate("document.querySelector('#list li table').marked = true")
        item.locator("button", has_text="Delete").focus()
        served.edit(capital("Poland", "Lyon"))
        expect(page.locator("#list li", has_text="Poland")).to_have_attribute("data-status", "live")
        assert item.locator("details").evaluate("(details) => details.open")
        assert page.evaluate("document.activeElement.textContent") == "Delete"
        assert page.evaluate("[...document.querySelectorAll('#list table')].some((table) => table.marked)")
        page.keyboard.press("Enter")  # the focused control disappears: the focus stays near, not on the page
        expect(item).to_have_attribute("data-status", "retired")
        assert page.evaluate("document.activeElement.closest('#list li')?.textContent.includes('Japan')")


# -- 4. files ---------------------------------------------------------------------------------------


def test_a_file_is_imported_and_exported(browser: Browser, served: Running, tmp_path: Path) -> None:
    file, wrong = tmp_path / "ours.jsonl", tmp_path / "wrong.jsonl"
    file.write_text("".join(json.dumps(capital(name, "Lyon")) + "\n" for name in ("Chile", "Peru")))
    wrong.write_text(file.read_text() + '{"prompt": "x"}\n')
    with opened(browser, served) as page:
        page.click("#tab-edits")
        page.set_input_files("#import-file", wrong)
        expect(notice(page)).to_contain_text("line 3: field 'target'")
        expect(page.locator("#import")).to_be_hidden()
        page.set_input_files("#import-file", file)
        expect(page.locator("#import")).to_contain_text("ours.jsonl holds 2 edits")
        expect(notice(page)).to_have_count(0)
        shot(page, "desk-light-import")
        page.click("#import button:text('Submit 2 edits')")
        expect(page.locator("#import")).to_contain_text("2 of 2 submitted, 2 live")
        assert page.locator("#import progress").evaluate("(bar) => bar.value / bar.max") == 1
        with page.expect_download() as saved:
            page.click("#export")
        lines = [json.loads(line) for line in Path(saved.value.path()).read_text().splitlines()]
        live = {(line["prompt"], line["target"]) for line in lines}
        assert {("The capital of Chile is", "Lyon"), ("The capital of Peru is", "Lyon")} <= live
        assert saved.value.suggested_filename.startswith("edits-version-")
    with served.client("editor") as client:  # the export is a file of edits
        content = Path(file).read_bytes()
        assert client.post("/v1/files/edits", params={"name": "a.jsonl"}, content=content).status_code == 200


# -- 5. versions ------------------------------------------------------------------------------------


def test_any_two_versions_are_compared_and_a_rollback_is_undone(browser: Browser, served: Running) -> None:
    [first] = served.edit(capital("Canada", "Lyon"))
    [second] = served.edit(capital("Canada", "Nice"))
    [third] = served.edit(capital("Brazil", "Metz"))
    number = first["live_in"]
    with opened(browser, served) as page:
        page.click("#tab-history")
        page.fill("#before", str(number - 1))
        page.fill("#after", str(third["live_in"]))
        page.click("#compare button")
        expect(page.locator("#difference .plus")).to_have_count(2)
        page.click(f"#versions li[data-version='{second['live_in']}'] button:text('Changes')")
        expect(page.locator("#difference .minus")).to_contain_text("Lyon")
        expect(page.locator("#difference .plus")).to_contain_text("Nice")
        shot(page, "desk-light-versions")
        page.click(f"#versions li[data-version='{number}'] button:text('Roll back')")
        expect(notice(page, "done")).to_contain_text(f"Version {number} is served again.")
        page.click("#tab-chat")
        ask(page, "The capital of Canada is")
        expect(page.locator("#turns .said").last).to_have_text("Lyon.1")
        page.click(".notice button:text('Undo')")
        expect(notice(page, "done")).to_contain_text("was undone")
        ask(page, "The capital of Canada is")
        expect(page.locator("#turns .said").last).to_have_text("Nice.1")


# -- 6. errors, scopes, keys, eyes ------------------------------------------------------------------


def test_what_goes_wrong_stays_in_sight(browser: Browser, served: Running) -> None:
    with opened(browser, served, token="nobody", size="phone") as page:
        expect(notice(page)).to_contain_text("the token is not known")
        expect(page.locator("#status")).to_have_attribute("aria-label", "not connected")
        shot(page, "phone-light-unknown")
        page.fill("#token", "editor")
        page.press("#token", "Enter")
        expect(page.locator("#status")).to_have_attribute("aria-label", "connected")
        expect(notice(page)).to_have_count(0)
        page.fill("#prompt", "The capital of France is")
        page.fill("#target", "Lyon")
        page.fill("#subject", "Atlantis")
        page.click("#preview")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("Atlantis")
        served.edit(capital("Sweden", "Lyon"))  # an event does not take it away
        expect(page.locator("#version")).to_be_visible()
        for top in (0, 10_000):
            page.evaluate(f"scrollTo(0, {top})")
            expect(alert).to_be_in_viewport()
        shot(page, "phone-light-problem")
        page.get_by_role("button", name="Dismiss").click()
        expect(alert).to_have_count(0)


@pytest.mark.parametrize(("scope", "edits", "rolls"), [("reader", False, False), ("editor", True, False),
                                                       ("admin", True, True)])  # fmt: skip
def test_a_token_sees_the_buttons_that_it_may_press(
    browser: Browser, served: Running, scope: str, edits: bool, rolls: bool
) -> None:
    served.edit(capital("Kenya", "Lyon")) if scope == "reader" else None
    with opened(browser, served, token=scope) as page:
        assert page.locator("#holder").inner_text() == f"the-{scope} ({scope})"
        expect(page.locator("#editing")).to_be_visible(visible=edits)
        page.click("#tab-edits")
        expect(page.locator("label[for=import-file]")).to_be_visible(visible=edits)
        item = page.locator("#list li[data-status=live]").first
        item.locator("summary").click()
        expect(item.locator("table.forms")).to_be_visible()
        assert item.get_by_role("button", name="Delete").count() == edits
        page.click("#tab-history")
        expect(page.get_by_role("button", name="Changes").first).to_be_visible()
        assert (page.get_by_role("button", name="Roll back").count() > 0) == rolls


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser: Browser, served: Running) -> None:
    with opened(browser, served) as page:
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        page.locator("#tab-chat").focus()
        for key, tab in (("ArrowRight", "edits"), ("ArrowRight", "history"), ("End", "service"), ("ArrowRight", "chat"),
                         ("ArrowLeft", "service"), ("Home", "chat")):  # fmt: skip
            page.keyboard.press(key)
            expect(page.locator(f"#tab-{tab}")).to_be_focused()
            expect(page.locator(f"#{tab}")).to_be_visible()
            assert page.locator("[role=tabpanel]:visible").count() == 1
            assert page.evaluate(UNNAMED) == []
        reached = []
        for _ in range(11):
            page.keyboard.press("Tab")
            name, style, width = page.evaluate(
                "(() => { const s = getComputedStyle(document.activeElement); "
                "return [document.activeElement.id, s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
            )
            assert style == "solid" and width >= 2, name
            reached.append(name)
        order = ["words", "send", "prompt", "target"]
        assert [name for name in reached if name in order] == order
        page.evaluate("document.body.append(Object.assign(document.createElement('button'), { id: 'bare' }))")
        assert len(page.evaluate(UNNAMED)) == 1  # negative control


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_text_stands_out_and_fits_the_screen(browser: Browser, served: Running, mode: Any) -> None:
    [edit] = served.edit(capital("Austria" if mode == "light" else "Ireland", "Lyon"))
    with opened(browser, served, color_scheme=mode) as page:
        ask(page, edit["prompt"])
        expect(page.locator("mark.spoke")).to_have_text("Lyon.1")
        page.fill("#subject", "Atlantis")
        page.fill("#prompt", edit["prompt"])
        page.fill("#target", "Nice")
        page.click("#preview")
        expect(notice(page)).to_be_visible()
        page.locator("#list li details").first.evaluate("(details) => (details.open = true)")
        for tab in ("chat", "edits", "history", "service"):
            for size, (width, height) in SIZES.items():
                page.set_viewport_size({"width": width, "height": height})
                page.click(f"#tab-{tab}")
                if tab == "service":  # its content is requested when it is opened
                    expect(page.locator("#tiles .tile").first).to_be_visible()
                contrasts = page.evaluate(CONTRAST)
                assert contrasts["count"] > 20 and contrasts["poor"] == [], (tab, size)
                assert not wide(page), (tab, size)
                shot(page, f"{size}-{mode}-{tab}")
        page.click("#tab-chat")
        assert page.evaluate(CONTRAST)["poor"] == [] and not wide(page)
        page.evaluate("document.querySelectorAll('small').forEach((one) => (one.style.color = '#777777'))")
        page.evaluate("document.querySelector('#chat .card').style.width = '2000px'")  # negative controls
        assert page.evaluate(CONTRAST)["poor"] and wide(page)


def test_the_page_loads_nothing_from_elsewhere(browser: Browser, plain: Running) -> None:
    requests: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: requests.append(request.url))
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text) if message.type == "error" else None)
    page.goto(f"{plain.url}/")
    expect(page.locator("#access")).to_contain_text("token of the service")
    assert page.url == f"{plain.url}/console"
    assert len(requests) > 5 and all(url.startswith((plain.url, "data:")) for url in requests)
    assert not refused, refused
    page.close()
