"""The page of `export --as html` in a real browser: what is drawn, what a reader can do, and what a hostile log cannot.

Skipped where there is no playwright or no chromium, but with MPSNAP_BROWSER=1 their absence is a failure.
"""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from histories import HOSTILE, Story, everything, hostile, large, tokens

from mpsnap.core.history import History
from mpsnap.views.html import html_text
from mpsnap.views.spacetime import Diagram, chosen_cut, diagram

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.processes, pytest.mark.browser]

#: Left of the node lines, above them: of the page's own layout.
TOP = 46
#: Opens a log and returns its page.
Opened = Callable[..., "Page"]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opened]:
    """Open pages, and in the end look that they asked for nothing, said nothing and ran nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(20_000)
    trouble: list[str] = []
    pages: list[Page] = []

    def dismiss(dialog: Any) -> None:
        trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open_page(history: History, cut: int | None = None, **limits: int) -> Page:
        drawing = diagram(history)
        path = tmp_path / f"{len(pages)}.html"
        path.write_text(html_text(drawing, chosen_cut(drawing, cut), **limits))
        page = context.new_page()
        pages.append(page)
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", dismiss)
        page.on("request", lambda asked: None if asked.url == path.as_uri() else trouble.append(f"asks: {asked.url}"))
        page.goto(path.as_uri())
        page.wait_for_selector("#diagram[data-scale]")
        return page

    yield open_page
    for page in pages:
        assert page.evaluate("typeof window.pwned") == "undefined"
    context.close()
    assert trouble == []


def settled(page: Page) -> None:
    """Wait until what was asked for is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def scale(page: Page) -> float:
    settled(page)
    return float(page.evaluate("document.getElementById('diagram').dataset.scale"))


def left(page: Page) -> float:
    settled(page)
    return float(page.evaluate("document.getElementById('diagram').dataset.left"))


def recorded(page: Page) -> list[tuple[int, float, float]]:
    """Return the node and the place on the screen of each recorded point of the cut."""
    settled(page)
    script = """() => [...document.querySelectorAll("#world .recorded[data-lane]")].map((point) => {
        const box = point.getBoundingClientRect();
        return [Number(point.dataset.lane), box.x + box.width / 2, box.y + box.height / 2];
    })"""
    return [(int(lane), x, y) for lane, x, y in page.evaluate(script)]


def cut_passes(page: Page, x: float, y: float) -> bool:
    """Return whether the line of the cut goes through a place on the screen, and nowhere else through that height."""
    script = """([x, y]) => {
        const line = document.getElementById("cut"), length = line.getTotalLength(), matrix = line.getScreenCTM();
        let best = Infinity, nearest = 0;
        const look = (from, to, step) => {
            for (let at = Math.max(0, from); at <= Math.min(length, to); at += step) {
                const point = line.getPointAtLength(at).matrixTransform(matrix);
                const off = Math.hypot(point.x - x, point.y - y);
                if (off < best) [best, nearest] = [off, at];
            }
        };
        // Of hundreds of nodes the line is long, and each look at it costs as much as it has parts.
        const coarse = Math.max(0.5, length / 1000);
        look(0, length, coarse);
        look(nearest - 2 * coarse, nearest + 2 * coarse, Math.max(0.25, coarse / 100));
        look(nearest - coarse / 50, nearest + coarse / 50, 0.25);
        return best;
    }"""
    return float(page.evaluate(script, [x, y])) < 1.0


def place_of(page: Page, drawing: Diagram, rank: int) -> tuple[float, float]:
    """Return where an entry must be on the screen by the axis by cause."""
    settled(page)
    box = page.evaluate("(() => { const b = diagram.getBoundingClientRect(); return [b.x, b.y, b.height] })()")
    gutter = 32 + 7.4 * min(20, max(3, *(len(name) for name in drawing.nodes)))
    gap = min(210.0, max(44.0, (box[2] - TOP - 26) / len(drawing.nodes)))
    point = drawing.points[rank]
    assert point.lane is not None
    return box[0] + gutter + (point.column - left(page)) * scale(page), box[1] + TOP + gap * (point.lane + 0.5)


# --- What is drawn. ---


@pytest.mark.parametrize("history", [tokens, large])
def test_the_cut_crosses_every_node_line_where_the_node_recorded(
    opened: Opened, history: Callable[[], History]
) -> None:
    page, drawing = opened(history()), diagram(history())
    cut = drawing.cuts[0]
    points = recorded(page)
    assert [lane for lane, _, _ in points] == list(range(len(drawing.nodes)))
    for lane, x, y in points:
        assert (x, y) == pytest.approx(place_of(page, drawing, cut.recorded[lane]), abs=1.0)
        assert cut_passes(page, x, y)
    assert page.get_attribute("#cut", "data-snapshot") == cut.id


def test_messages_in_flight_are_marked_where_they_cross_the_cut(opened: Opened) -> None:
    page, drawing = opened(tokens()), diagram(tokens())
    settled(page)
    marked = page.evaluate(
        "[...document.querySelectorAll('#world .flying')].map((line) => Number(line.dataset.message))"
    )
    assert sorted(marked) == sorted(drawing.cuts[0].in_flight)
    places = page.evaluate("""[...document.querySelectorAll("#world .crossing")].map((mark) => {
        const box = mark.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    })""")
    assert len(places) == len(marked)
    assert all(cut_passes(page, x, y) for x, y in places)
    assert f"{drawing.cuts[0].total} in flight" in page.inner_text("#about")


def test_the_page_says_what_ran_and_what_is_wrong_with_the_log(opened: Opened) -> None:
    page = opened(everything()._replace(flaw="x.log:9 is damaged"))
    assert page.inner_text("h1") == "mine on by hand"
    assert "processes, 3 nodes, 6 channels, 2 snapshots, 41 entries, 0.010 ms to 0.120 ms" in page.inner_text("#facts")
    notices = page.inner_text("#notices")
    for notice in ("x.log:9 is damaged", "12 entries are missing", "gamma died: gamma: killed by SIGKILL"):
        assert notice in notices
    settled(page)
    glyphs = page.evaluate("[...document.querySelectorAll('#world [data-event]')].map((glyph) => glyph.dataset.event)")
    assert sorted(glyphs) == ["command", "died", "dropped", "log", "output", "refused", "timer"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_the_ground(opened: Opened, scheme: Any) -> None:
    page = opened(tokens())
    page.emulate_media(color_scheme=scheme)
    script = """(kind) => {
        const found = document.querySelector(`#world .${kind}`), style = getComputedStyle(found);
        return [style.stroke, getComputedStyle(document.getElementById("stage")).backgroundColor];
    }"""
    for kind in ("cut", "flying", "message", "marker"):
        stroke, ground = ([int(n) for n in re.findall(r"\d+", text)[:3]] for text in page.evaluate(script, kind))
        assert contrast(stroke, ground) > 3, kind


def contrast(one: list[int], other: list[int]) -> float:
    def brightness(colour: list[int]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    light, dark = sorted((brightness(one), brightness(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# --- What a reader does. ---


def test_a_click_on_a_recorded_point_shows_the_state(opened: Opened) -> None:
    page = opened(everything())
    for (_, x, y), state in zip(recorded(page), ('"balance": 95', '"balance": 105', '"$size": 70000'), strict=True):
        page.mouse.click(x, y)
        assert "recorded" in page.inner_text("#details h2")
        assert state in page.inner_text("#details pre")
        assert page.locator("#world .pickedpoint").count() == 1
    page.mouse.click(x + 300, y + 60)
    assert "Nothing is selected" in page.inner_text("#details")


def test_a_click_on_a_message_shows_its_payload_and_leads_to_its_ends(opened: Opened) -> None:
    page = opened(everything())
    settled(page)
    box = page.locator("#world .crossing").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.inner_text("#details h2") == "Message alpha \u2192 beta"
    assert "in flight at the cut of snapshot 0" in page.inner_text("#details")
    assert page.inner_text("#details pre") == '{"$tuple": [1, "two"]}'
    page.click("text=where it was received")
    assert page.inner_text("#details h2") == "beta: received"
    assert page.inner_text("#details pre") == '{"$tuple": [1, "two"]}'


def test_another_snapshot_moves_the_cut(opened: Opened) -> None:
    page = opened(everything())
    first = recorded(page)
    page.select_option("#cuts", "1")
    settled(page)
    assert page.get_attribute("#cut", "data-snapshot") == "0-beta-1"
    ((lane, x, y),) = recorded(page)
    assert lane == 1
    assert x > max(at for _, at, _ in first)
    assert cut_passes(page, x, y)
    assert "abandoned" in page.inner_text("#about")
    assert page.locator("#world .past").count() == 0, "it divides nothing"
    page.click("#none")
    settled(page)
    assert page.locator("#cut").count() == 0
    page.focus("#diagram")
    page.keyboard.press("n")
    assert recorded(page) == first
    page.keyboard.press("n")
    settled(page)
    assert page.get_attribute("#cut", "data-snapshot") == "0-beta-1"
    page.keyboard.press("p")
    assert recorded(page) == first
    label = page.locator("#axis text[data-cut='1']").bounding_box()
    assert label is not None
    page.mouse.click(label["x"] + 2, label["y"] + 5)
    settled(page)
    assert page.get_attribute("#cut", "data-snapshot") == "0-beta-1"


def test_wheel_drag_buttons_and_keys_zoom_and_move(opened: Opened) -> None:
    page = opened(large())
    before = scale(page)
    page.mouse.move(600, 400)
    page.mouse.wheel(0, -300)
    page.wait_for_function("(old) => document.getElementById('diagram').dataset.scale > old * 1.2", arg=before)
    start, now = left(page), scale(page)
    page.mouse.down()
    page.mouse.move(480, 400, steps=4)
    page.mouse.up()
    assert left(page) - start == pytest.approx(120 / now, rel=0.02)
    assert scale(page) == now, "a drag is no click and no zoom"
    for press, factor in (("#in", 1.4), ("#out", 1 / 1.4)):
        now = scale(page)
        page.click(press)
        assert scale(page) == pytest.approx(now * factor)
    page.focus("#diagram")
    for key, factor in (("+", 1.4), ("-", 1 / 1.4)):
        now = scale(page)
        page.keyboard.press(key)
        assert scale(page) == pytest.approx(now * factor)
    start, now = left(page), scale(page)
    page.keyboard.press("Shift+ArrowRight")
    assert left(page) - start == pytest.approx(120 / now, rel=0.02)
    page.keyboard.press("0")
    whole = scale(page)
    assert whole < now
    page.click("#tocut")
    assert scale(page) > whole
    points = recorded(page)
    assert len(points) == 8
    page.keyboard.press("0")
    assert scale(page) == pytest.approx(whole)
    map_box = page.locator("#map").bounding_box()
    assert map_box is not None
    page.click("#tocut")
    page.mouse.click(map_box["x"] + 5, map_box["y"] + 10)
    assert left(page) < 10


def test_the_keyboard_goes_from_event_to_event(opened: Opened) -> None:
    page = opened(everything())
    page.focus("#diagram")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#details h2") == "alpha: recorded", "where the cut begins"
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#details h2") == "alpha: sent"
    page.keyboard.press("Enter")
    assert page.inner_text("#details h2") == "beta: received"
    page.keyboard.press("Enter")
    assert page.inner_text("#details h2") == "alpha: sent"
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#details h2").startswith("beta: ")
    page.keyboard.press("Escape")
    assert "Nothing is selected" in page.inner_text("#details")


@pytest.mark.parametrize("history", [tokens, everything])
def test_the_axis_by_time_keeps_the_cut_through_the_recorded_points(
    opened: Opened, history: Callable[[], History]
) -> None:
    page = opened(history())
    page.click("#time")
    page.click("#tocut")
    points = recorded(page)
    assert points
    assert all(cut_passes(page, x, y) for _, x, y in points)
    assert page.get_attribute("#time", "aria-pressed") == "true"
    page.keyboard.press("a")
    settled(page)
    assert page.get_attribute("#diagram", "data-axis") == "order"


def test_parts_can_be_hidden(opened: Opened) -> None:
    page = opened(tokens())
    settled(page)
    for box, kind in (("#messages", ".message"), ("#markers", ".marker"), ("#values", ".value")):
        assert page.locator(f"#world {kind}").count() > 0
        page.uncheck(box)
        settled(page)
        assert page.locator(f"#world {kind}").count() == 0
    assert page.locator("#world .flying").count() > 0, "what is in flight at the cut belongs to the cut"


def test_two_fingers_zoom(opened: Opened) -> None:
    page = opened(large())
    before = scale(page)
    page.evaluate("""() => {
        const at = (type, id, x) => diagram.dispatchEvent(new PointerEvent(type, {
            pointerId: id, clientX: x, clientY: 300, bubbles: true, pointerType: "touch", isPrimary: id === 1 }));
        diagram.setPointerCapture = () => {};
        at("pointerdown", 1, 500); at("pointerdown", 2, 600);
        at("pointermove", 1, 480); at("pointermove", 2, 680);
        at("pointerup", 1, 480); at("pointerup", 2, 680);
    }""")
    assert scale(page) == pytest.approx(before * 200 / 120, rel=0.01)


# --- What a log cannot do. ---


def test_hostile_text_is_text(opened: Opened) -> None:
    """Everything that can be looked at is looked at; the fixture sees what ran or was asked for."""
    page = opened(hostile())
    count = page.evaluate("log.lane.length")
    told = page.evaluate("""() => {
        const texts = [];
        for (let rank = 0; rank < log.lane.length; rank++) {
            if (log.lane[rank] < 0) continue;
            pick({ id: rank }, true);
            texts.push(document.getElementById("details").textContent, summary({ id: rank }));
        }
        for (let i = 0; i < messages.length; i++) {
            pick({ arrows: messages, id: i }, true);
            texts.push(document.getElementById("details").textContent);
        }
        setAxis("time");
        return texts;
    }""")
    assert count == len(hostile().entries)
    settled(page)
    for text in HOSTILE[:4]:
        assert any(text in seen for seen in told)
    assert page.locator("img, iframe, object, embed, link, base, a").count() == 0
    assert page.locator("script").count() == 2
    box = page.locator("#diagram").bounding_box()
    assert box is not None
    for share in range(1, 10):
        page.mouse.move(box["x"] + box["width"] * share / 10, box["y"] + box["height"] * 0.3)


def test_the_policy_holds(browser: Browser, tmp_path: Path) -> None:
    """Even where a hole in the page would let markup in, nothing of it runs and nobody is connected to."""
    path = tmp_path / "page.html"
    path.write_text(html_text(diagram(tokens())))
    context = browser.new_context()
    page = context.new_page()
    page.goto(path.as_uri())
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        refused = page.evaluate(
            """(address) => {
                const image = new Promise((done) => { window.told = done; });
                const found = document.createElement("img");
                found.addEventListener("error", () => window.told("refused"));
                found.addEventListener("load", () => window.told("got"));
                found.src = address;
                document.body.append(found);
                document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.pwned = 1'>");
                const script = document.createElement("script");
                script.textContent = "window.pwned = 1";
                document.body.append(script);
                const fetched = fetch(address, { mode: "no-cors" }).then(() => "got", () => "refused");
                return Promise.all([image, fetched]);
            }""",
            address,
        )
        assert refused == ["refused", "refused"]
        assert page.evaluate("typeof window.pwned") == "undefined"
        context.close()
        with pytest.raises(BlockingIOError):
            server.accept()


# --- Sizes. ---


def test_eight_nodes_of_five_hundred_events_take_few_elements(opened: Opened) -> None:
    page = opened(large())
    for key in ("0", "c"):
        page.keyboard.press(key)
        settled(page)
        assert page.locator("#diagram *").count() < 1500
    assert page.locator("#world .message").count() >= 1


def test_only_what_is_in_view_is_drawn_and_too_much_becomes_bars(opened: Opened) -> None:
    page = opened(large(3000))
    page.keyboard.press("0")
    settled(page)
    assert "drawn as bars of their number" in page.inner_text("#hint")
    assert page.locator("#diagram *").count() < 1000
    assert page.locator("#world .bars").count() == 8
    page.keyboard.press("c")
    settled(page)
    assert page.is_hidden("#hint")
    path = page.evaluate("document.querySelector('#world .message').getAttribute('d').length")
    assert 0 < path < 60_000
    assert len(recorded(page)) == 8


def test_of_many_nodes_those_in_view_are_drawn(opened: Opened) -> None:
    page, drawing = opened(large(6, 150)), diagram(large(6, 150))
    settled(page)
    assert page.locator("#world .lane").count() < 120
    assert page.locator("#diagram *").count() < 2500
    first = recorded(page)
    assert first[0][0] == 0
    page.evaluate("pick({ id: log.cuts[0].recorded[120] }, true)")
    assert page.inner_text("#details h2") == "N121: recorded"
    later = recorded(page)
    assert {120} <= {lane for lane, _, _ in later}
    assert 0 not in {lane for lane, _, _ in later}
    assert all(cut_passes(page, x, y) for _, x, y in later)
    assert len(drawing.nodes) == 150


def test_a_page_that_holds_a_part_says_so(opened: Opened) -> None:
    page = opened(large(), max_entries=600)
    assert "This page holds 600 of the log's" in page.inner_text("#notices")
    assert all(cut_passes(page, x, y) for _, x, y in recorded(page))
    assert len(recorded(page)) == 8


@pytest.mark.parametrize("width", [600, 1280])
def test_nothing_runs_out_of_the_page(opened: Opened, width: int) -> None:
    page = opened(hostile())
    page.set_viewport_size({"width": width, "height": 800})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("history", [lambda: Story("A", "B").history, lambda: Story().history])
def test_an_empty_log_is_a_page_too(opened: Opened, history: Callable[[], History]) -> None:
    page = opened(history())
    assert "no entries" in page.inner_text("#notices")
    assert "no snapshot" in page.inner_text("#about")
    page.focus("#diagram")
    for key in ("ArrowRight", "ArrowDown", "Enter", "c", "n", "p", "x", "a", "0", "+", "-", "Home", "End"):
        page.keyboard.press(key)
    settled(page)
    assert math.isfinite(scale(page))
    assert json.loads(page.evaluate("JSON.stringify(view)"))["axis"] == "time"
