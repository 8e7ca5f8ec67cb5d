"""The dashboard in a real browser: broken links, ends, what it costs, hostile text, sizes and colours.

Skipped where there is no playwright or no chromium, but with MPSNAP_BROWSER=1 their absence is a failure.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from conftest import wait_until
from dashboard_browser import Visits
from dashboard_fake import BEGAN, PAGE, Fake, content_document, diff_document, digest_document, spread, with_snapshots
from dashboard_steps import (
    compare,
    model,
    open_node,
    open_snapshot,
    overflow,
    row,
    snapshot_from,
    wait_live,
    wait_opened,
)
from histories import HOSTILE
from test_browser import contrast

with contextlib.suppress(ImportError):
    from playwright.sync_api import expect

pytestmark = [pytest.mark.processes, pytest.mark.browser]


# --- The link. ---


def test_the_token_leaves_the_address_and_outlives_a_reload(visit: Visits) -> None:
    fake = Fake(token="t0k/en+&=%?#")
    page, _ = visit(fake)
    assert "#" not in page.url
    assert page.evaluate("document.referrer") == ""
    page.reload()
    wait_live(page)
    assert "t0k" not in page.url
    snapshot_from(page, "N1")
    assert fake.refused == []
    assert page.evaluate("localStorage.length") == 0
    assert page.evaluate("document.cookie") == ""


def test_without_the_right_token_the_page_says_what_to_do(visit: Visits) -> None:
    fake = Fake()
    seen = visit(fake)
    fake.token = "another"
    seen.page.reload()
    expect(seen.page.locator("#link")).to_have_text("no access")
    expect(seen.page.locator("#banner")).to_contain_text(
        "open the link that `mpsnap serve` has printed (the token is wrong)"
    )
    expect(seen.page.locator("#take")).to_be_disabled()
    asked = len(fake.refused)
    seen.page.evaluate("location.hash = 't=another'")
    wait_live(seen.page)
    expect(seen.page.locator("#take")).to_be_enabled()
    assert len(fake.refused) == asked == 1, "who is refused does not try for ever"
    seen.forgive_lost_connections()


def test_the_page_comes_back_by_itself_when_the_stream_breaks(visit: Visits) -> None:
    fake = Fake()
    seen = visit(fake)
    fake.break_streams(down=True)
    expect(seen.page.locator("#link")).to_have_text("reconnecting")
    expect(seen.page.locator("#banner")).to_contain_text("What is shown is how it was.")
    expect(seen.page.locator("#nodes tr")).to_have_count(8)
    fake.status["nodes"][0].update(handled_per_s=4.5, status="frozen")
    fake.down = False
    wait_live(seen.page)
    expect(row(seen.page, "N1")).to_contain_text("frozen")
    expect(seen.page.locator("#banner")).to_be_hidden()
    fake.break_streams()
    wait_until(lambda: fake.streams >= 3, "the page's third stream")
    wait_live(seen.page)
    seen.forgive_lost_connections()


def test_the_pause_before_the_next_attempt_can_be_cut_short(visit: Visits) -> None:
    fake = Fake()
    seen = visit(fake, clock=True)
    fake.break_streams(down=True)
    expect(seen.page.locator("#again")).to_be_visible()
    fake.down = False
    seen.page.locator("#again").click()
    wait_live(seen.page)
    assert fake.streams == 2
    seen.forgive_lost_connections()


def test_the_end_of_the_run_is_told(visit: Visits) -> None:
    fake = Fake()
    page, _ = visit(fake)
    fake.push("end", {"error": {"what": "N2 died", "where": "N2", "try": "--store DIR"}})
    expect(page.locator("#link")).to_have_text("run has ended")
    expect(page.locator("#banner")).to_have_text("The run has ended: N2: N2 died; try: --store DIR")
    expect(page.locator("#state")).to_have_text("ended")
    for name in ("#take", "#pause", "#stop"):
        expect(page.locator(name)).to_be_disabled()
    for button in page.locator("#nodes .take").all():
        expect(button).to_be_disabled()


def test_an_orderly_end_is_told_too(visit: Visits) -> None:
    fake = Fake()
    page, _ = visit(fake)
    fake.push("end", {"error": None})
    expect(page.locator("#banner")).to_contain_text("The run has ended in good order.")


def test_another_run_at_the_same_address_begins_anew(visit: Visits) -> None:
    fake = with_snapshots()
    page, _ = visit(fake)
    expect(page.locator("#snapshots li")).to_have_count(3)
    other = Fake("grid:2x2", name="other-1", pid=1)
    fake.status = other.status
    fake.push()
    expect(page.locator("#stage .node")).to_have_count(4)
    expect(page.locator("#snapshots li")).to_have_count(0)
    expect(page.locator("#run")).to_have_text("other-1")


def test_the_time_line_outlives_a_reload(visit: Visits) -> None:
    fake = Fake()
    page, _ = visit(fake)
    for _ in range(5):
        fake.tick()
    wait_until(lambda: model(page, "handled.length") == 6, "six samples")
    page.reload()
    wait_live(page)
    assert model(page, "handled.length") == 6


# --- What it costs. ---


def test_the_picture_changes_once_a_second_and_only_where_something_has_changed(visit: Visits) -> None:
    fake = Fake()
    page, _ = visit(fake, clock=True)
    fake.tick()
    wait_until(lambda: model(page, "status.run.uptime_s") == 13.3, "the second status")
    page.clock.run_for(1000)
    expect(page.locator("#facts")).to_contain_text("up 13 s")
    page.evaluate("""() => {
        window.touched = new Set();
        new MutationObserver((changes) => {
            for (const { target } of changes) {
                const element = target.nodeType === 1 ? target : target.parentElement;
                const part = element.closest("section, dl, header");
                window.touched.add(part ? part.id || part.tagName : element.tagName);
            }
        }).observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
    }""")
    for _ in range(20):
        fake.tick()
    wait_until(lambda: model(page, "status.run.uptime_s") == 33.3, "the last of them")
    assert "up 13 s" in page.inner_text("#facts"), "until a second is over"
    page.clock.run_for(1000)
    expect(page.locator("#facts")).to_contain_text("up 33 s")
    touched = set(page.evaluate("[...window.touched]"))
    assert touched <= {"HEADER", "timeline-section"}, "only the uptime and the time line have changed"


def test_a_page_that_nobody_sees_lets_go_of_the_stream(visit: Visits) -> None:
    fake = Fake()
    page, _ = visit(fake, clock=True)
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    page.clock.run_for(16_000)
    expect(page.locator("#link")).to_have_text("resting")

    def gone() -> bool:
        fake.push("lost", {})
        return fake.listening == 0

    wait_until(gone, "nobody to listen")
    page.evaluate(hide, False)
    wait_live(page)
    assert fake.streams == 2


# --- What a run cannot do to it. ---


def hostile() -> Fake:
    """A run whose every text is something that a browser might take for its own."""
    fake = Fake("complete:8", name=HOSTILE[0], app=HOSTILE[1], store=HOSTILE[3])
    fake.status["run"]["topology"] = HOSTILE[2]
    names = dict(zip([f"N{place}" for place in range(1, 9)], HOSTILE, strict=True))
    names["N7"] += "x" * 300
    for node in fake.status["nodes"]:
        node.update(name=names[node["name"]], summary=HOSTILE[0] + "y" * 500, phase=HOSTILE[5])
    for channel in fake.status["channels"]:
        channel.update(src=names[channel["src"]], dst=names[channel["dst"]])
    error = {"what": HOSTILE[0], "where": HOSTILE[1], "try": HOSTILE[5]}
    fake.status["deaths"] = [{"node": name, **error, "time": BEGAN} for name in names.values()]
    fake.status["nodes"][1]["status"] = HOSTILE[1]
    for number, name in enumerate(names.values()):
        digest = digest_document(fake.status, [name])
        fake.status["snapshots"].append(digest)
        spread(digest)
        content = fake.contents[number] = content_document(fake.status, digest)
        for node in content["snapshot"]["nodes"].values():
            node["state"] = {each: each for each in HOSTILE}
        content["snapshot"]["channels"][0]["messages"] = [*HOSTILE, "z" * 5000]
    fake.status["snapshots"][3].update(number=None, phase="abandoned", error=error, verified=None)
    fake.diffs[0, 7] = diff_document(0, 7)
    change = {"path": HOSTILE[0], "what": "changed", "old": HOSTILE, "new": HOSTILE[0]}
    fake.diffs[0, 7]["nodes"][HOSTILE[0]] = {**fake.diffs[0, 7]["nodes"].pop("N1"), "state": [change]}
    fake.states = {name: {"state": HOSTILE} for name in names.values()}
    doing: dict[str, Any] = {"phase": HOSTILE[0], "for_s": 1.0, "channels": [HOSTILE[:2]], "stack": HOSTILE}
    fake.why = {
        "nodes": [{**doing, "node": HOSTILE[0], "doing": HOSTILE[1], "text": HOSTILE[2]}],
        "waits": [{"node": HOSTILE[0], "for": HOSTILE[1], "channel": HOSTILE[:2], "kind": HOSTILE[4]}],
        **{"run": {}, "cycle": HOSTILE, "verdict": HOSTILE[0]},
    }
    return fake


@pytest.mark.parametrize("width", [375, 1280])
def test_hostile_text_is_text(visit: Visits, width: int) -> None:
    """Everything is looked at; the fixture sees what ran, was asked for or violated the policy."""
    fake = hostile()
    page, _ = visit(fake, viewport={"width": width, "height": 900})
    expect(page.locator("#title")).to_have_text(f"{HOSTILE[1]} on {HOSTILE[2]}")
    expect(page.locator("#nodes .nodename").first).to_have_text(HOSTILE[0])
    expect(page.locator("#nodes .nodename").nth(4)).to_have_text("\\x1b[2J\\x07\\x00\\u2028\\u202e\\ud800")
    assert overflow(page) <= 0
    page.locator("#why-ask").click()
    expect(page.locator("#why-verdict")).to_have_text(HOSTILE[0])
    page.locator("#why-answer summary").first.click()
    for place in (0, 4):
        page.locator("#nodes tr").nth(place).get_by_text("More").click()
        page.locator("#panel-state").click()
        if place == 0:
            expect(page.locator("#panel-value")).to_contain_text(HOSTILE[0].replace('"', '\\"'))
        expect(page.locator("#panel-about")).to_have_text(re.compile("State now|There is no answer"))
    page.locator("#panel-close").click()
    page.locator("#nodes .take").nth(6).click()
    expect(page.locator("#told")).to_contain_text("verified")
    assert overflow(page) <= 0
    assert fake.posts[0][1]["nodes"][0].endswith("xxx")
    page.locator("#snapshots a").nth(1).click()
    wait_opened(page, 7)
    page.locator("#cut-other").select_option("0")
    page.locator("#cut-compare").click()
    expect(page.locator("#cut-difference tbody th")).to_contain_text(HOSTILE[0])
    expect(page.locator("#cut-states pre").first).to_contain_text("\\u202e")
    assert overflow(page) <= 0
    assert page.locator("img, iframe, object, embed, base, body script, body style").count() == 0
    assert page.locator("a:not([href^='#'])").count() == 0


def test_the_page_is_built_of_text_alone() -> None:
    """Where no markup is ever made of a string, none can be smuggled in."""
    for path in PAGE.iterdir():
        source = path.read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "DOMParser",
        ):
            assert word not in source, f"{path.name}: {word}"
        assert len(source.splitlines()) <= 400, path.name
    page = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=)", page)
    assert not re.search(r"https?://(?!www\.w3\.org)", "".join(path.read_text() for path in PAGE.iterdir()))


# --- Sizes and colours. ---


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("topology", ["complete:8", "complete:64"])
def test_nothing_runs_out_of_the_page(visit: Visits, topology: str, width: int) -> None:
    fake = with_snapshots(3, topology)
    page, _ = visit(fake, viewport={"width": width, "height": 800})
    assert overflow(page) <= 0
    open_node(page, "N3")
    assert overflow(page) <= 0
    page.locator("#panel-close").click()
    open_snapshot(page, 2)
    compare(page, 0)
    assert overflow(page) <= 0
    assert page.locator("#cut-states li").count() == len(fake.status["nodes"])


#: What is to be read there, and what is only to be seen.
READ = (
    *("#title", "#facts", "#state", "#link", "#total-rate", "#totals dt", "#take", "#stop", ".nodename", ".phase"),
    *("#nodes .status.running", "#nodes .status.blocked", "#nodes .status.dead", "#snapshots a", "#snapshots .from"),
    *("#snapshots .pill", "#snapshots .error", "#events b", "#events .words", "#wave-text", "#legend summary", "#told"),
)
SEEN = (".edge.busy", ".edge.full", ".node.running .body", ".node.blocked .body", ".node.dead .body", "path.flow")
DRAWN = ("#stage .name", "#stage .told", "#stage .flight", "#timeline text", "#stage .backlog")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_the_ground(visit: Visits, scheme: Any) -> None:
    fake = with_snapshots()
    fake.status["nodes"][1].update(status="blocked")
    fake.status["nodes"][2].update(status="dead")
    fake.status["channels"][2].update(full=True)
    fake.status["deaths"] = [{"node": "N2", "what": "killed", "where": None, "try": None, "time": BEGAN + 1}]
    fake.status["snapshots"][1].update(phase="abandoned", error={"what": "N2 died", "where": None, "try": None})
    page, _ = visit(fake, color_scheme=scheme)
    snapshot_from(page, "N4")
    script = """(selector) => {
        const found = document.querySelector(selector), style = getComputedStyle(found);
        let ground = found;
        while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
        return [style.color, style.fill, style.stroke, getComputedStyle(ground).backgroundColor];
    }"""

    def numbers(text: str) -> list[int]:
        return [int(n) for n in re.findall(r"\d+", text)[:3]]

    for kinds, place, least in ((READ, 0, 4.5), (DRAWN, 1, 4.5), (SEEN, 2, 3.0)):
        for selector in kinds:
            found = page.evaluate(script, selector)
            assert contrast(numbers(found[place]), numbers(found[3])) >= least, (selector, found)
