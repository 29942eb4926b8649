"""The page in a real Chromium, against a server with scripted compute."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright")
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.serving.lifespan import lifespan_of
from support.serving.page_stub import STORY, Stub, pieces, run, serve

from adaptive_lm.serve.application.build import build
from adaptive_lm.serve.page.routes import page_routes
from adaptive_lm.serve.scheduler.open import open_scheduler
from adaptive_lm.serve.settings import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
EVIL = "<img src=x onerror=document.title='broken'><script>document.title='broken'</script> &amp; </div>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Stub]:
    with serve(Stub()) as stub:
        yield stub


@pytest.fixture
def stub(running: Stub) -> Stub:
    """Return the one server, with a new script."""
    running.__dict__.update({**Stub().__dict__, "address": running.address})
    return running


Open = Callable[..., Page]


@pytest.fixture(scope="module")
def window(browser: Browser) -> Page:
    """Return the window of all tests that need no other: a new one costs half a second."""
    return browser.new_page(viewport={"width": 1280, "height": 800})


@pytest.fixture
def open_page(browser: Browser, window: Page, stub: Stub) -> Iterator[Open]:
    """Open the page; at the end, fail for errors in its console and violations of its policy."""
    opened: list[Page] = []
    complaints: list[str] = []

    def complain(one: Any) -> None:
        # What fails on purpose, the browser reports as a resource; everything else is a fault of the page.
        if one.type == "error" and "Failed to load resource" not in one.text:
            complaints.append(one.text)

    def fault(error: Any) -> None:
        complaints.append(str(error))

    def open_page(*, state: str = "ready", **options: Any) -> Page:
        page = browser.new_page(**options) if options else window
        page.set_default_timeout(10_000)
        page.on("pageerror", fault)
        page.on("console", complain)
        opened.append(page)
        page.goto(stub.address)
        page.wait_for_selector(f"#status[data-state={state}]")
        return page

    yield open_page
    for page in opened:
        page.remove_listener("pageerror", fault)
        page.remove_listener("console", complain)
        if page is window:
            page.evaluate("sessionStorage.clear()")
        else:
            page.close()
    assert not complaints


def ask(page: Page, prompt: str = "How?", *, wait: bool = True) -> None:
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    if wait:
        page.wait_for_selector("#send", state="visible")


def written(page: Page, side: int = 0) -> str:
    return "".join(page.locator(".answer .text").nth(side).locator(".t").all_text_contents())


def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def test_tokens_stream_in_and_each_is_shaded_by_its_compute(open_page: Open, stub: Stub) -> None:
    stub.pause = 0.05
    page = open_page()
    ask(page, wait=False)
    page.locator(".t").nth(4).wait_for()
    assert page.locator(".text").get_attribute("aria-busy") == "true"
    assert len(written(page)) < len(STORY)
    stub.pause = 0
    page.wait_for_selector("#send", state="visible")
    assert written(page) == STORY
    levels = page.eval_on_selector_all(".t", "all => all.map(one => Number(/ s(\\d)/.exec(one.className)[1]))")
    assert len(levels) == len(pieces(STORY))
    assert len(set(levels)) >= 5
    comma, collide = pieces(STORY).index("."), pieces(STORY).index(" collide")
    assert levels[collide] - levels[comma] >= 4
    assert page.inner_text("#low") == "20 %"
    assert page.inner_text("#high") == "100 %"
    body = stub.requests[0]
    assert body["path"] == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "How?"}]
    assert (body["model"], body["stream"], body["compute_details"], body["logprobs"]) == ("demo", True, True, True)
    assert re.search(r"69 % of dense compute.*98 tokens", page.inner_text(".foot").replace("\n", " "))


def test_text_that_was_held_back_belongs_to_the_last_token(open_page: Open, stub: Stub) -> None:
    stub.texts["short"], stub.held = "a b", "</s"
    page = open_page()
    ask(page, "short")
    assert page.locator(".t").all_text_contents() == ["a", " b</s"]


def test_text_probabilities_and_compute_of_a_token_may_come_in_different_chunks(open_page: Open, stub: Stub) -> None:
    stub.late = True
    page = open_page()
    page.get_by_text("Plain prompt").click()
    ask(page)
    assert written(page) == STORY
    assert page.locator(".t").count() == len(pieces(STORY))
    page.locator(".t").nth(2).click()
    expect(page.locator("#token-text")).to_have_text("␣where")
    expect(page.locator("#alternatives .taken code")).to_have_text("␣where")
    assert "–" not in page.inner_text("#facts")


def test_s59_text_is_text_wherever_it_stands(open_page: Open, stub: Stub) -> None:
    stub.texts[EVIL] = EVIL
    page = open_page()
    ask(page, EVIL)
    assert written(page) == EVIL
    page.locator(".t").first.click()
    assert page.locator("#turns img, #turns script, #inspector img").count() == 0
    assert page.inner_text(".asked").endswith(EVIL)
    stub.refuse = (400, EVIL, {})
    ask(page, "again")
    assert EVIL[1:] in page.inner_text(".fault")
    assert page.title() == "adaptive"


def test_s59_the_policy_stops_injected_code(browser: Browser, stub: Stub) -> None:
    page = browser.new_page()
    page.goto(stub.address)
    assert page.evaluate("""() => {
        try { document.body.innerHTML = "<b>x</b>"; return "allowed" } catch (error) { return error.name }
    }""") == "TypeError"  # fmt: skip
    assert page.evaluate("""() => new Promise(resolve => {
        addEventListener("securitypolicyviolation", event => resolve(event.effectiveDirective));
        document.body.append(Object.assign(document.createElement("img"), { src: "http://127.0.0.2:1/x.png" }));
    })""") == "img-src"  # fmt: skip
    page.close()


def test_keys_pointer_and_slider_move_through_the_tokens(open_page: Open) -> None:
    page = open_page()
    ask(page)
    tokens, place = page.locator(".t"), page.locator("#token-place")
    page.focus(".text")
    page.keyboard.press("Home")
    expect(place).to_have_text("1 of 98")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(place).to_have_text("3 of 98")
    expect(page.locator("#token-text")).to_have_text("␣where")
    expect(tokens.nth(2)).to_have_class(re.compile(r"\bon\b"))
    assert "“␣where”, token 3 of 98" in page.inner_text("#announcer")
    page.keyboard.press("ArrowDown")
    below = page.evaluate("""() => {
        const all = [...document.querySelectorAll(".t")], on = document.querySelector(".t.on");
        return [on.getClientRects()[0].top > all[2].getClientRects()[0].top, all.indexOf(on)];
    }""")
    assert below[0]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("End")
    expect(place).to_have_text("98 of 98")
    page.keyboard.press("Escape")
    tokens.nth(7).hover()
    expect(place).to_have_text("8 of 98")
    tokens.nth(9).click()
    tokens.nth(20).hover()
    expect(place).to_have_text("10 of 98")  # pinned
    page.focus("#scrubber")
    page.keyboard.press("ArrowRight")
    expect(place).to_have_text("11 of 98")
    assert "token 11 of 98" in str(page.get_attribute("#scrubber", "aria-valuetext"))


def test_a_token_shows_its_layers_experts_heads_time_and_alternatives(open_page: Open, stub: Stub) -> None:
    stub.texts["short"] = "a . a . a . a ."
    page = open_page()
    page.fill("#dial-a", "0.5")
    ask(page, "short")
    page.locator(".t").first.click()
    expect(page.locator("#token-place")).to_have_text(re.compile("^1 of "))  # drawn in the next frame
    rows = page.locator("#layers tbody tr")
    expect(rows).to_have_count(8)
    record = page.locator("#layers tbody").inner_text()
    assert "skipped" in record
    facts = page.inner_text("#facts")
    assert re.search(r"Compute\s+\d+ %\s+Layers\s+\d of 8\s+Time\s+[\d.]+ ms\s+Probability\s+30 %", facts)
    alternatives = page.locator("#alternatives li")
    expect(alternatives).to_have_count(5)
    assert re.search(r"a\s+30 %", page.locator("#alternatives .taken").inner_text())
    assert page.locator("#layers tr.skipped").count() == 8 - int(re.search(r"(\d) of 8", facts)[1])  # type: ignore[index]


def test_the_heat_maps_are_drawn_have_a_table_and_choose_tokens(open_page: Open) -> None:
    page = open_page()
    ask(page)
    canvases = page.locator(".map canvas")
    expect(canvases).to_have_count(2)
    until(lambda: "layer 0 ran for 100 %" in (canvases.first.get_attribute("aria-label") or ""))
    colours = page.evaluate("""() => [...document.querySelectorAll(".map canvas")].map(canvas => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const seen = new Set();
        for (let i = 0; i < data.length; i += 4) seen.add(`${data[i]},${data[i + 1]},${data[i + 2]},${data[i + 3]}`);
        return seen.size;
    })""")
    assert min(colours) >= 4
    page.locator(".map summary").first.click()
    rows = page.locator(".map table").first.locator("tbody tr")
    expect(rows).to_have_count(8)
    assert rows.first.inner_text().split("\t")[:2] == ["0", "100 %"]
    canvases.first.click(position={"x": 31, "y": 20})
    expect(page.locator("#token-place")).to_have_text("1 of 98")


def test_the_slider_acts_on_the_next_request_and_auto_and_sampling_are_sent(open_page: Open, stub: Stub) -> None:
    page = open_page()
    ask(page, "one")
    page.fill("#dial-a", "0.35")
    assert len(stub.requests) == 1
    page.click("#sampling summary")
    page.fill("#temperature", "0.7")
    page.fill("#max-tokens", "5")
    page.fill("#seed", "11")
    ask(page, "two")
    page.locator(".dial input[type=checkbox]").first.check()
    ask(page, "three")
    assert [body["compute"] for body in stub.requests] == [1, 0.35, "auto"]
    assert "temperature" not in stub.requests[0]
    assert {name: stub.requests[1][name] for name in ("temperature", "max_tokens", "seed")} == {
        "temperature": 0.7, "max_tokens": 5, "seed": 11}  # fmt: skip
    assert [message["role"] for message in stub.requests[2]["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert "compute 0.70" in page.locator(".answer").nth(2).inner_text()  # the one that `auto` gave
    page.click("#new")
    assert page.locator(".turn").count() == 0
    ask(page, "four")
    assert [message["content"] for message in stub.requests[3]["messages"]] == ["four"]


def test_two_dials_answer_one_prompt_side_by_side_with_one_seed(open_page: Open, stub: Stub) -> None:
    page = open_page()
    page.check("#compare")
    page.fill("#dial-b", "0.4")
    ask(page)
    assert sorted(body["compute"] for body in stub.requests) == [0.4, 1]
    assert len({body["seed"] for body in stub.requests}) == 1
    a, b = (page.locator(".answer").nth(i).bounding_box() for i in (0, 1))
    assert a is not None
    assert b is not None
    assert a["x"] + a["width"] <= b["x"] + 20
    assert abs(a["y"] - b["y"]) < 1
    verdict = page.inner_text(".verdict")
    assert verdict.startswith("The same text up to token 40")
    assert "B took 47 % less compute" in verdict
    assert page.locator(".differs").count() == 2
    ask(page, "more")
    histories = {body["compute"]: body["messages"][1]["content"] for body in stub.requests[2:]}
    assert histories[1] == STORY
    assert histories[0.4] != STORY


def test_a_plain_prompt_is_a_completion_and_a_model_without_template_or_dial_says_so(
    open_page: Open, stub: Stub
) -> None:
    page = open_page()
    page.get_by_text("Plain prompt").click()
    ask(page, "Once upon")
    body = stub.requests[0]
    assert (body["path"], body["prompt"], body["logprobs"]) == ("/v1/completions", "Once upon", 5)
    assert "messages" not in body
    page.locator(".t").first.click()
    expect(page.locator("#alternatives li")).to_have_count(5)
    page.select_option("#model", "plain")
    assert page.is_disabled("input[value=chat]")
    assert page.is_disabled("#dial-a")
    assert "not calibrated" in page.inner_text("#reason")
    ask(page, "there")
    assert "compute" not in stub.requests[1]
    assert stub.requests[1]["model"] == "plain"


def test_stop_ends_the_request_and_keeps_the_text(open_page: Open, stub: Stub) -> None:
    stub.pause = 0.03
    page = open_page()
    ask(page, wait=False)
    page.locator(".t").nth(3).wait_for()
    page.click("#stop")
    until(lambda: stub.gone == 1)
    expect(page.locator(".foot")).to_contain_text("stopped")
    assert 0 < len(written(page)) < len(STORY)
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_an_error_says_what_to_do_and_can_be_tried_again(open_page: Open, stub: Stub) -> None:
    stub.texts["How?"] = "By folding."
    page = open_page()
    for status, headers, title, advice in (
        (429, {"Retry-After": "7"}, "The server is full", "room in 7 s"),
        (503, {}, "The server cannot take this request now", "Wait a moment"),
        (504, {}, "The answer took too long", "fewer tokens"),
        (500, {}, "The server failed", "log"),
        (404, {}, "The server does not have this model", "Choose another"),
        (400, {}, "The server refused this request", "Found too much."),
    ):
        stub.refuse = (status, "found too much", headers)
        ask(page)
        fault = page.inner_text(".fault")
        assert title in fault
        assert advice in fault
        page.get_by_text("Try again", exact=True).click()
        page.wait_for_selector("#send", state="visible")
        expect(page.locator(".fault")).to_have_count(0)
        assert written(page) == "By folding."
        page.click("#new")


def test_a_stream_that_breaks_keeps_its_text_and_says_so(open_page: Open, stub: Stub) -> None:
    stub.break_after, stub.pause = 6, 0.02
    page = open_page()
    ask(page)
    assert "The connection broke" in page.inner_text(".fault")
    assert "The 6 tokens so far stay" in page.inner_text(".fault")
    assert written(page) == "".join(pieces(STORY)[:6])


def test_a_key_is_asked_for_once_kept_in_the_tab_and_never_in_the_address(open_page: Open, stub: Stub) -> None:
    stub.key = "s3cret"
    page = open_page(state="locked")
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    expect(page.locator("#key-title")).to_have_text("The server did not accept the key")
    page.fill("#key", "s3cret")
    page.press("#key", "Enter")
    page.wait_for_selector("#status[data-state=ready]")
    ask(page)
    assert written(page) == STORY
    assert "s3cret" not in page.url
    assert "s3cret" not in page.content()
    stores = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert json.loads(stores) == [{}, {"adaptive-key": "s3cret"}, ""]


def test_a_server_that_goes_away_and_comes_back_is_noticed(browser: Browser) -> None:
    with serve(Stub()) as stub:
        port = int(stub.address.rpartition(":")[2])
        page = browser.new_page()
        page.goto(stub.address)
        page.wait_for_selector("#status[data-state=ready]")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_selector("#status[data-state=away]")
    assert "does not answer" in page.inner_text("#banner")
    ask(page)
    assert "The server cannot be reached" in page.inner_text(".fault")
    with serve(Stub(), port):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_selector("#status[data-state=ready]")
        assert page.is_hidden("#banner")
        page.get_by_text("Try again", exact=True).click()
        page.wait_for_selector("#send", state="visible")
        assert written(page) == STORY
    page.close()


def test_the_load_of_the_server_is_shown(open_page: Open, stub: Stub) -> None:
    page = open_page()
    assert (page.inner_text("#running"), page.inner_text("#waiting")) == ("3/8", "1/64")
    stub.props = {"load": {"running": 8, "max_batch": 8, "waiting": 2, "max_queue": 64, "tokens_per_second": 1234.5}}
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#running")).to_have_text("8/8")
    expect(page.locator("#throughput")).to_have_text("1,235")
    stub.props = {"status": "draining"}
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#status-text")).to_have_text("shutting down")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_are_readable_on_every_shade(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    contrasts = page.evaluate("""() => {
        const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
        const luminance = (...colours) => {
            for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
            const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const style = getComputedStyle(document.body), paper = style.backgroundColor;
        const ratio = (ink, ...grounds) => {
            const [a, b] = [luminance(...grounds, ink), luminance(...grounds)].sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05);
        };
        const quiet = getComputedStyle(document.querySelector(".quiet")).color;
        const shades = [...document.querySelectorAll("#swatches i")].map(i => getComputedStyle(i).backgroundColor);
        const steps = shades.map(shade => luminance(paper, shade));
        return { ink: shades.map(shade => ratio(style.color, paper, shade)), quiet: ratio(quiet, paper), steps };
    }""")
    assert min(contrasts["ink"]) >= 4.5  # AA
    assert contrasts["quiet"] >= 4.5
    steps = contrasts["steps"]
    assert sorted(steps, reverse=scheme == "light") == steps  # the steps differ in lightness, in one direction
    assert len(set(steps)) == len(steps)


def test_a_phone_shows_all_of_it_without_scrolling_sideways(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.check("#compare")
    ask(page)
    page.locator(".t").nth(5).tap()
    expect(page.locator("#sheet-text")).to_contain_text("% compute")
    page.tap("#sheet")
    expect(page.locator("#token-place")).to_be_visible()
    wide = "() => Math.max(...[...document.querySelectorAll('body, #scroll, #inside, #composer, header')]"
    assert page.evaluate(f"{wide}.map(one => one.scrollWidth - one.clientWidth))") <= 0
    small = page.evaluate("""() => [...document.querySelectorAll("button, select, textarea")]
        .filter(one => one.offsetParent && one.getBoundingClientRect().height < 24).map(one => one.outerHTML)""")
    assert small == ["""<button type="button" id="unpin" class="plain">follow again</button>"""]


def test_each_control_has_a_name_and_the_tab_key_reaches_it_in_order(open_page: Open) -> None:
    page = open_page()
    ask(page)
    nameless = page.evaluate("""() => [
        ...document.querySelectorAll("button, select, input, textarea, canvas, [tabindex]")]
        .filter(one => !one.labels?.length && !one.textContent.trim() && !one.getAttribute("aria-label"))
        .map(one => one.outerHTML)""")
    assert nameless == []
    page.focus(".skip")
    reached = ["skip"]
    while reached[-1] != "prompt" and len(reached) < 40:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    order = [name for name in reached if name in {"skip", "model", "measure", "text", "scrubber", "dial-a", "prompt"}]
    assert order == ["skip", "model", "measure", "text", "scrubber", "dial-a", "prompt"]
    assert page.locator("[aria-live], [role=status], [role=alert], [role=log]").count() == 2  # announcer and banner


def test_four_thousand_tokens_stay_fluid(open_page: Open, stub: Stub) -> None:
    stub.texts["long"] = " ".join(["word"] * 4000)
    page = open_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def layouts() -> float:
        return next(
            one["value"] for one in session.send("Performance.getMetrics")["metrics"] if one["name"] == "LayoutCount"
        )

    before = layouts()
    ask(page, "long")
    assert page.locator(".t").count() == 4000
    assert layouts() - before < 800  # none for each token
    started = time.monotonic()
    page.select_option("#measure", "experts")
    page.locator(".t").nth(3999).click()
    expect(page.locator("#token-place")).to_have_text("4000 of 4000")
    assert time.monotonic() - started < 3


def test_the_page_works_on_the_real_application(browser: Browser, folder: Path) -> None:
    settings = Settings(models=(str(folder),), device="cpu", threads=1, api_keys=(("tests", "s3cret"),))
    scheduler = open_scheduler(settings)

    complaints: list[str] = []
    with run(build(settings, scheduler, pages=page_routes(), lifespan=lifespan_of(scheduler))) as address:
        page = browser.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "s3cret")
        page.press("#key", "Enter")
        page.wait_for_selector("#status[data-state=ready]")
        for plain in (False, True):
            if plain:
                page.get_by_text("Plain prompt").click()
            page.click("#sampling summary")
            page.fill("#max-tokens", "6")
            ask(page, "ab")
            assert page.locator(".fault").count() == 0
            answer = page.locator(".answer").nth(int(plain))
            assert 0 < answer.locator(".t").count() <= 6
            answer.locator(".t").first.click()
            rows = page.locator("#layers tbody tr")
            expect(rows).to_have_count(scheduler.models()[0].manifest.model.num_layers)
            expect(page.locator("#alternatives .taken")).to_have_count(1)
            assert "of dense compute" in answer.inner_text()
        page.close()
    assert not complaints
