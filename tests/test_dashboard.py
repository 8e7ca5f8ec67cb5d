"""The dashboard in a real browser, over a server that says what the test wants: what it shows, and what one does there.

Skipped where there is no playwright or no chromium, but with MPSNAP_BROWSER=1 their absence is a failure.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from conftest import wait_until
from dashboard_browser import Visits
from dashboard_fake import BEGAN, Fake, Refusal, diff_document, digest_document, with_snapshots
from dashboard_steps import (
    answer,
    back,
    compare,
    entry,
    open_node,
    open_snapshot,
    overflow,
    row,
    snapshot_from,
    tab_to,
    wait_opened,
)

with contextlib.suppress(ImportError):
    from playwright.sync_api import expect

pytestmark = [pytest.mark.processes, pytest.mark.browser]


# --- What is shown. ---


def test_the_run_its_nodes_and_their_rates_are_shown(visit: Visits) -> None:
    fake = Fake(store="/tmp/kept", incarnation=2)
    fake.status["nodes"][4].update(status="blocked", phase_s=3.2, summary="17 tokens")
    page, _ = visit(fake)
    expect(page.locator("h1")).to_have_text("tokens on complete:8 running")
    for text in ("tokens-4711", "up 12 s", "forkserver", "incarnation 2", "keeps in /tmp/kept"):
        expect(page.locator("#who")).to_contain_text(text)
    expect(page.locator("#total-rate")).to_have_text("9.80k")
    expect(page.locator("#nodes tr")).to_have_count(8)
    for text in ("N3", "running", "on_message", "1.22k", "12 %", "23.5 MB"):
        expect(row(page, "N3")).to_contain_text(text)
    for text in ("blocked", "on_message for 3.20 s", "17 tokens"):
        expect(row(page, "N5")).to_contain_text(text)
    expect(page.locator("#stage .node")).to_have_count(8)
    expect(page.locator("#stage .edge")).to_have_count(56)
    expect(page.locator(".node[data-node=N5]")).to_have_attribute(
        "aria-label", re.compile("N5: blocked, 1.24k handled")
    )
    fake.status["nodes"][2].update(handled_per_s=77.0, backlog=4321)
    fake.tick()
    expect(row(page, "N3")).to_contain_text("77")
    expect(page.locator(".node[data-node=N3] .backlog")).to_have_text("4.32k")


def test_channels_tell_rates_and_messages_in_flight_where_there_is_room(visit: Visits) -> None:
    fake = Fake("ring:4")
    fake.status["channels"][2].update(full=True, in_flight=4096)
    page, _ = visit(fake)
    expect(page.locator("#stage text.flow")).to_have_text(["121/s", "122/s", "123/s", "124/s"])
    expect(page.locator("#stage text.flight")).to_have_text(["10", "9", "4,096 full", "7"])
    expect(page.locator("#stage path.edge.full")).to_have_count(1)


def test_pointing_at_a_node_tells_its_channels_apart(visit: Visits) -> None:
    page, _ = visit(Fake())
    assert page.locator("#stage text.flow").count() == 0, "56 of them cannot be read"
    page.locator(".node[data-node=N3]").hover()
    expect(page.locator("#stage path.edge.own")).to_have_count(14)
    expect(page.locator("#stage text.flow")).to_have_count(14)
    expect(page.locator("#stage .tip")).to_contain_text("N3")
    page.mouse.move(5, 5)
    expect(page.locator("#stage path.edge.own")).to_have_count(0)


@pytest.mark.parametrize(
    "topology",
    [
        *("ring:1", "ring:2", "ring:8", "biring:9", "line:2", "line:8", "line:64", "star:3", "star:20", "grid:1x2"),
        *("grid:2x4", "grid:8x8", "random:20:0.1:7", "complete:64"),
    ],
)
def test_every_topology_finds_a_place(visit: Visits, topology: str) -> None:
    """Every node is in the picture, no two at one place, and the page is no wider than the window."""
    fake = Fake(topology)
    page, _ = visit(fake)
    expect(page.locator("#stage .node")).to_have_count(len(fake.status["nodes"]))
    script = """() => {
        const stage = document.getElementById("stage").getBoundingClientRect();
        return [...document.querySelectorAll("#stage .node .body")].map((body) => {
            const box = body.getBoundingClientRect();
            return [box.left - stage.left, box.top - stage.top, stage.right - box.right, stage.bottom - box.bottom];
        });
    }"""
    fits = """() => {
        const stage = document.getElementById("stage").getBoundingClientRect();
        const size = `0 0 ${Math.round(stage.width)} ${Math.round(stage.height)}`;
        return [...document.querySelectorAll("#stage svg")].every((svg) => svg.getAttribute("viewBox") === size);
    }"""
    for width in (1280, 375):
        page.set_viewport_size({"width": width, "height": 800})
        wait_until(lambda: page.evaluate(fits), "the picture to fit its place")
        boxes = page.evaluate(script)
        assert all(side >= 0 for box in boxes for side in box)
        assert len({(round(left), round(top)) for left, top, _, _ in boxes}) == len(boxes)
        assert overflow(page) <= 0


def test_of_many_channels_the_busiest_are_drawn_and_those_of_a_node_on_demand(visit: Visits) -> None:
    fake = Fake("complete:64")
    for place, channel in enumerate(fake.status["channels"]):
        channel["handled_per_s"] = 500.0 if place % 100 == 0 else 1.0
    page, _ = visit(fake)
    expect(page.locator("#stage .edge")).to_have_count(90)
    assert page.locator("#topology *").count() < 1500
    expect(page.locator("#topology")).to_contain_text("the 90 busiest of 4,032 channels")
    page.locator(".node[data-node=N7]").focus()
    expect(page.locator("#stage .edge.own")).to_have_count(126)
    names = page.locator("#stage .name:not(.thin)").count()
    assert names >= 32, "most can be read without pointing at them"


def test_the_table_is_sorted_by_what_one_asks_for(visit: Visits) -> None:
    fake = Fake()
    page, _ = visit(fake)
    names = page.locator("#nodes .nodename")
    page.get_by_role("button", name="Handled/s").click()
    expect(names).to_have_text([f"N{place}" for place in range(8, 0, -1)])
    page.get_by_role("button", name="Handled/s").click()
    expect(names).to_have_text([f"N{place}" for place in range(1, 9)])
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("Handled/s")


def test_deaths_and_recoveries_are_told_and_marked_on_the_time_line(visit: Visits) -> None:
    fake = Fake()
    page, _ = visit(fake)
    expect(page.locator("#events-none")).to_be_visible()
    error = {"node": "N2", "what": "killed by SIGKILL", "where": "N2", "try": "look at dmesg"}
    fake.status["deaths"].append({**error, "time": BEGAN + 5})
    fake.status["recoveries"].append({"incarnation": 1, "number": 4, "seconds": 0.12, "time": BEGAN + 6})
    fake.tick()
    expect(page.locator("#events li").first).to_contain_text("recovered")
    expect(page.locator("#events li").last).to_contain_text("N2 diedN2: killed by SIGKILL; try: look at dmesg")
    expect(page.locator("#timeline path.death")).to_have_attribute("d", re.compile("M"))
    expect(page.locator("#timeline path.recovery")).to_have_attribute("d", re.compile("M"))
    expect(page.locator("#timeline svg")).to_have_attribute("aria-label", re.compile("1 deaths"))
    expect(page.locator("#total-deaths")).to_have_text("1 / 1")


def test_why_shows_the_verdict_and_the_stacks(visit: Visits) -> None:
    fake = Fake()
    stack = ['  File "apps/slow.py", line 3, in on_message', "    time.sleep(60)"]
    nobody: dict[str, Any] = {"channels": [], "stack": None}
    fake.why = {
        "run": {},
        "nodes": [
            {**nobody, "node": "N1", "doing": "waiting", "phase": "waiting", "for_s": 2.0, "text": "waits for N2"},
            {
                **{"node": "N2", "doing": "handler", "phase": "on_message", "for_s": 12.3, "channels": []},
                **{"text": "in on_message for 12.3 s", "stack": stack},
            },
        ],
        "waits": [{"node": "N1", "for": "N2", "channel": ["N2", "N1"], "kind": "empty"}],
        "cycle": ["N1", "N2"],
        "verdict": "N2 has been in on_message for 12.3 s and 1 node waits for it",
    }
    page, _ = visit(fake)
    page.locator("#why-ask").click()
    expect(page.locator("#why-verdict")).to_have_text(fake.why["verdict"])
    expect(page.locator("#why-answer")).to_contain_text("N1 \u2192 N2 \u2192 N1")
    page.locator("#why-answer details[data-node=N2] summary").click()
    expect(page.locator("#why-answer details[data-node=N2] pre")).to_have_text("\n".join(stack))
    page.locator("#why-answer details[data-node=N1] summary").click()
    expect(page.locator("#why-answer details[data-node=N1]")).to_contain_text("N2 (N2 \u2192 N1 is empty)")


# --- Snapshots. ---


def test_a_snapshot_from_here_is_taken_and_opened_and_compared(visit: Visits) -> None:
    fake = with_snapshots(2)
    page, _ = visit(fake)
    number = snapshot_from(page, "N3")
    assert fake.posts == [("snapshot", {"nodes": ["N3"]})]
    expect(entry(page, number)).to_contain_text("1.30 ms \u00b7 7 in flight \u00b7 4.32 kB")
    fake.diffs[0, number] = diff_document(0, number)
    open_snapshot(page, number)
    expect(page.locator("#cut-facts")).to_contain_text("fromN3")
    expect(page.locator("#cut-facts")).to_contain_text("7 messages")
    expect(page.locator("#cut-states li")).to_have_count(8)
    expect(page.locator("#cut-states li[data-node=N2] pre")).to_have_text('{"tokens": 1, "note": "state of N2"}')
    expect(page.locator("#cut-states li[data-node=N2]")).to_contain_text("recorded after 0.20 ms, closed after 1.00 ms")
    expect(page.locator("#cut-channels")).to_contain_text("6 messages on 2 channels; 54 are empty.")
    messages = page.locator("#cut-channels details[data-channel='N1 N2'] li")
    expect(messages).to_have_text(['{"amount": 0}', '{"amount": 1}', '{"amount": 2}'])
    expect(page.locator("#cut-channels ol").first).to_have_attribute("start", "41")
    compare(page, 0)
    changed = page.locator("#cut-difference details[data-node=N1] tbody tr")
    expect(changed).to_have_text(["tokens103", 'seen[2]\u2013{"$tuple": [1, "x"]}', "latenull\u2013"])
    expect(page.locator("#cut-difference details[data-node=N1]")).to_contain_text(
        "sent +45 \u00b7 passive: no \u2192 yes"
    )
    channel = page.locator("#cut-difference details[data-channel='N1 N2']")
    expect(channel.locator("summary")).to_have_text("N1 \u2192 N21 left it, 2 entered it")
    expect(channel.locator("li")).to_have_text(['3{"amount": 1}', '41{"amount": 99}', '42"last"'])
    back(page)
    expect(page.locator("#live")).to_be_visible()


def test_a_snapshot_has_an_address_of_its_own(visit: Visits) -> None:
    fake = with_snapshots()
    page, _ = visit(fake)
    open_snapshot(page, 1)
    assert page.url.endswith("/#s1")
    page.reload()
    wait_opened(page, 1)
    page.go_back()
    expect(page.locator("#live")).to_be_visible()
    page.go_forward()
    wait_opened(page, 1)


def test_the_wave_is_shown_while_it_spreads(visit: Visits) -> None:
    fake = Fake()
    fake.hold = True
    page, _ = visit(fake)
    page.get_by_role("button", name="Snapshot from here: N3").click()
    expect(page.locator("#wave-text")).to_contain_text("1 of 8 recorded, 0 closed; waits for N1 \u2192 N3")
    expect(page.locator("#stage [data-wave=recorded]")).to_have_count(1)
    expect(page.locator("#stage .awaited")).to_have_attribute("d", re.compile("(M[^M]*){7}"))
    expect(entry(page, 0)).to_contain_text("recording")
    expect(entry(page, 0)).to_contain_text("waits for N1 \u2192 N3, N2 \u2192 N3")
    digest = fake.status["snapshots"][0]
    digest["nodes"]["N1"].update(recorded_s=0.1, awaits=["N2"])
    digest["waiting"]["channels"] = [["N2", "N1"]]
    fake.push("snapshot", digest)
    expect(page.locator("#stage [data-wave=recorded]")).to_have_count(2)
    expect(page.locator("#wave-text")).to_contain_text("waits for N2 \u2192 N1")
    fake.complete(digest)
    expect(page.locator("#told")).to_contain_text("Snapshot 0 from N3 completed in 1.30 ms, verified")


def test_a_wave_can_be_seen_again_in_slow_motion(visit: Visits) -> None:
    page, _ = visit(with_snapshots())
    page.locator("#wave-of").select_option(label="snapshot 2, from N3")
    expect(page.locator("#stage [data-wave=closed]")).to_have_count(8)
    slider = page.locator("#wave-at")
    slider.fill("0")
    expect(page.locator("#stage [data-wave=recorded]")).to_have_count(1)
    expect(page.locator("#stage .node[data-node=N3]")).to_have_attribute("data-wave", "recorded")
    slider.fill("400")
    expect(page.locator("#stage [data-wave=recorded]")).to_have_count(4)
    expect(slider).to_have_attribute("aria-valuetext", "0.48 ms: 4 recorded, 0 closed")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause", exact=True)).to_be_visible()
    expect(page.locator("#stage [data-wave=closed]")).to_have_count(8)
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    page.get_by_role("button", name="Hide").click()
    expect(page.locator("#stage [data-wave]")).to_have_count(0)


def test_who_wants_no_motion_goes_step_by_step(visit: Visits) -> None:
    page, _ = visit(with_snapshots(), reduced_motion="reduce")
    page.locator("#wave-of").select_option(label="snapshot 2, from N3")
    step = page.get_by_role("button", name="Next step")
    for done in (1, 2, 3, 4):
        step.click()
        expect(page.locator("#wave-text")).to_contain_text(f"{done} of 8 recorded, 0 closed")
    number = snapshot_from(page, "N5")
    page.locator("#wave-of").focus()
    expect(page.locator("#wave-text")).to_contain_text(f"snapshot {number}, from N5: 8 of 8 recorded, 8 closed")


def test_an_abandoned_snapshot_says_why(visit: Visits) -> None:
    fake = with_snapshots(1)
    digest = digest_document(fake.status, ["N2"])
    digest.update(phase="abandoned", number=None, error={"what": "N4 died", "where": "snapshot 0-N2-1", "try": None})
    fake.status["snapshots"].append(digest)
    page, _ = visit(fake)
    listed = page.locator("#snapshots li").first
    expect(listed).to_contain_text("abandoned")
    expect(listed).to_contain_text("snapshot 0-N2-1: N4 died")
    listed.get_by_role("link").click()
    expect(page.locator("#cut-title")).to_have_text("0-N2-1")
    expect(page.locator("#cut-error")).to_contain_text("N4 died")
    back(page)
    fake.hold = True
    page.locator("#take").click()
    expect(page.locator("#told")).to_contain_text("From the nodes needed: snapshot 2 is being taken")
    digest = fake.status["snapshots"][2]
    digest.update(phase="abandoned", error={"what": "it took too long", "where": None, "try": "--timeout 60"})
    fake.push("snapshot", digest)
    expect(page.locator("#told")).to_have_text("Snapshot 2 was abandoned. it took too long; try: --timeout 60")


def test_what_the_server_has_cut_is_told(visit: Visits) -> None:
    fake = with_snapshots(2)
    content = fake.contents[0]["snapshot"]
    content["nodes"]["N1"]["state"] = {"list": [1, 2, {"$more": 98}], "a": 1, "$more": 5}
    content["nodes"]["N2"]["state"] = {"$size": 70_000_000}
    content["nodes"]["N3"]["received"] = {"N1": 5, "$more": 6}
    content["channels"][0]["messages"] = [1, 2, {"$more": 998}]
    diff = fake.diffs[0, 1]
    diff["nodes"]["N1"]["state"].append({"$more": 40})
    diff["nodes"]["N1"]["sent"]["$more"] = 3
    diff["nodes"]["$more"] = 4
    diff["channels"][0]["entered"].append({"$more": 70})
    diff["channels"].append({"$more": 12})
    page, _ = visit(fake)
    open_snapshot(page, 0)
    state = page.locator("#cut-states li[data-node=N1] pre")
    expect(state).to_have_text('{"list": [1, 2, \u2026 98 more], "a": 1, \u2026 5 more}')
    expect(page.locator("#cut-states li[data-node=N2] pre")).to_have_text("(70.0 MB, too large to show here)")
    expect(page.locator("#cut-channels details[data-channel='N1 N2'] summary")).to_contain_text("1,000 messages")
    page.locator("#cut-channels details[data-channel='N1 N2'] summary").click()
    expect(page.locator("#cut-channels details[data-channel='N1 N2'] li").last).to_have_text("\u2026 998 more")
    expect(page.locator("#cut-states li[data-node=N3]")).not_to_contain_text("received")
    compare(page, 1)
    expect(page.locator("#cut-difference details[data-node=N1]")).to_contain_text("\u2026 40 more")
    expect(page.locator("#cut-difference details[data-node=N1] summary")).to_contain_text("43 changes")
    expect(page.locator("#cut-difference details[data-channel='N1 N2']")).to_contain_text("1 left it, 72 entered it")
    for more in ("\u2026 4 more", "\u2026 12 more"):
        expect(page.locator("#cut-difference")).to_contain_text(more)


# --- Orders. ---


def test_a_node_is_asked_paused_told_and_killed(visit: Visits) -> None:
    fake = Fake()
    page, _ = visit(fake)
    open_node(page, "N3")
    expect(page.locator("#panel-facts")).to_contain_text("process4714")
    page.get_by_role("button", name="State", exact=True).click()
    expect(page.locator("#panel-value")).to_have_text('{"balance": 95, "name": "N3"}')
    page.locator("#panel-command").fill('{"do": [1, "x"]}')
    page.keyboard.press("Enter")
    expect(page.locator("#panel-value")).to_have_text('{"heard": {"do": [1, "x"]}}')
    page.locator("#panel-command").fill("{nothing")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#panel-about")).to_have_text("This is not JSON")
    page.locator("#panel-pause").click()
    expect(page.locator("#panel-status")).to_have_text("paused")
    expect(page.locator("#panel-pause")).to_have_text("Unpause")
    page.locator("#panel-pause").click()
    expect(page.locator("#panel-status")).to_have_text("running")
    for name in ("kill", "finish"):
        page.locator(f"#panel-{name}").click()
        answer(page, yes=False)
    expect(page.locator("#panel")).to_be_visible()
    page.locator("#panel-kill").click()
    expect(page.locator("#ask-words")).to_contain_text("This run keeps no snapshots to recover from")
    answer(page, yes=True)
    expect(page.locator("#told")).to_have_text("N3 is killed")
    page.locator("#panel-finish").click()
    answer(page, yes=True)
    expect(page.locator("#told")).to_have_text("N3 finishes")
    assert fake.posts == [
        ("command", {"node": "N3", "command": {"do": [1, "x"]}}),
        *(("pause", {"nodes": ["N3"]}), ("unpause", {"nodes": ["N3"]})),
        *(("kill", {"node": "N3"}), ("stop", {"node": "N3"})),
    ]
    assert fake.refused == []


def test_the_run_is_paused_and_stopped(visit: Visits) -> None:
    fake = Fake()
    page, _ = visit(fake)
    page.locator("#pause").click()
    expect(page.locator("#pause")).to_have_text("Unpause all")
    page.locator("#pause").click()
    expect(page.locator("#pause")).to_have_text("Pause all")
    page.locator("#stop").click()
    answer(page, yes=False)
    page.locator("#stop").click()
    answer(page, yes=True)
    expect(page.locator("#told")).to_have_text("The run is asked to end")
    assert fake.posts == [("pause", {"nodes": []}), ("unpause", {"nodes": []}), ("stop", {"node": None})]


def test_a_refusal_is_told_with_what_to_try(visit: Visits) -> None:
    def refuse(body: dict[str, Any]) -> dict[str, Any]:
        raise Refusal(409, {"what": "N3 cannot reach N1", "where": "ring:8", "try": "add N1"})

    fake = Fake()
    fake.answers["snapshot"] = refuse
    seen = visit(fake)
    seen.page.get_by_role("button", name="Snapshot from here: N3").click()
    expect(seen.page.locator("#told")).to_have_text("ring:8: N3 cannot reach N1; try: add N1")
    seen.page.get_by_role("button", name="Close this notice").click()
    expect(seen.page.locator("#notice")).to_be_hidden()
    seen.forgive_lost_connections()


def test_everything_can_be_done_by_keyboard(visit: Visits) -> None:
    """What is reached by Tab is seen to have the focus, and who closes something is back where it was opened."""
    page, _ = visit(with_snapshots())
    node = page.locator(".node[data-node=N3]")
    tab_to(page, node)
    page.keyboard.press("Enter")
    expect(page.locator("#panel-title")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#panel-close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    expect(node).to_be_focused()
    number = snapshot_from(page, "N3", by_keyboard=True)
    link = page.get_by_role("link", name=f"Snapshot {number}", exact=True)
    tab_to(page, link)
    page.keyboard.press("Enter")
    wait_opened(page, number)
    expect(page.locator("#cut-title")).to_be_focused()
    tab_to(page, page.locator("#cut-compare"))
    page.keyboard.press("Shift+Tab")
    expect(page.locator("#cut-other")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Shift+Tab")
    page.locator("#cut-back").focus()
    page.keyboard.press("Enter")
    expect(link).to_be_focused()
    tab_to(page, page.locator("#stop"))
    page.keyboard.press("Enter")
    expect(page.locator("#ask-no")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#ask")).to_be_hidden()
