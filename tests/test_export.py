"""What is drawn of an event log: places, arrows and cuts, each form by a reader of its own, and the verb.

`pytest tests/test_export.py --rewrite` writes the files in `golden` anew; commit the difference only if it is meant.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cli_harness import COMMAND, mpsnap, run
from histories import GOLDEN, HOSTILE, Story, by_chance, everything, hostile, large, tokens, written

from mpsnap.cli import main
from mpsnap.core.history import Entry, History, parse_log
from mpsnap.views.dot import dot_text
from mpsnap.views.html import html_text
from mpsnap.views.perfetto import perfetto_text, trace_events
from mpsnap.views.shiviz import PARSER, TooManyNumbers, shiviz_text, vector_clocks
from mpsnap.views.spacetime import Diagram, NoSuchCut, chosen_cut, diagram
from mpsnap.views.svg import MOST_COLUMNS, MOST_NODES, svg_text
from mpsnap.views.wording import brief, described

SVG = "{http://www.w3.org/2000/svg}"
FORMS = ("html", "svg", "dot", "shiviz", "perfetto")
#: Runs that have nothing, and those of which the log has lost something.
POOR = {
    "no entries": lambda: Story("A", "B").history,
    "no nodes": lambda: Story().history,
    "one node": lambda: _alone(),
    "no snapshot": lambda: by_chance(5),
    "ticks": lambda: by_chance(6, unit="ticks"),
    "the second half": lambda: tokens()._replace(entries=tokens().entries[90:]),
    "the first half": lambda: tokens()._replace(entries=tokens().entries[:90], flaw="x.log:92 is damaged"),
    "no supervisor": lambda: _without(None),
    "no sender": lambda: _without("N2"),
    "everything": everything,
    "hostile": hostile,
}


def _alone() -> History:
    story = Story("only")
    story.record(0.5, "only", "0-only-1", None, None)
    story.add(0.5, "only", "reported", snapshot="0-only-1", channels={})
    return story.history


def _without(node: str | None) -> History:
    return tokens()._replace(entries=tuple(entry for entry in tokens().entries if entry.node != node))


def text_of(form: str, history: History, **options: Any) -> str:
    drawing = diagram(history)
    cut = chosen_cut(drawing, **options)
    if form == "html":
        return html_text(drawing, cut)
    if form == "svg":
        return svg_text(drawing, cut)
    if form == "dot":
        return dot_text(drawing, cut)
    return shiviz_text(drawing) if form == "shiviz" else perfetto_text(drawing)


# --- Word for word. ---


@pytest.mark.parametrize("form", ["svg", "dot", "shiviz", "perfetto"])
@pytest.mark.parametrize("history", [tokens, everything])
def test_golden_files(request: pytest.FixtureRequest, form: str, history: Callable[[], History]) -> None:
    text = text_of(form, history())
    path = GOLDEN / f"{history.__name__}.{'json' if form == 'perfetto' else form}"
    if request.config.getoption("--rewrite", default=False):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", POOR)
def test_every_form_draws_every_log_the_same_each_time_and_in_plain_characters(what: str, form: str) -> None:
    history = POOR[what]()
    text = text_of(form, history)
    assert text == text_of(form, history)
    assert text.endswith("\n")
    assert text.isascii()
    assert text.replace("\n", "").isprintable()


# --- Places. ---


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("unit", ["seconds", "ticks"])
def test_arrows_point_forward_and_points_of_a_node_are_apart(seed: int, unit: str) -> None:
    _check_places(diagram(by_chance(seed, unit=unit)))


@pytest.mark.parametrize("history", [tokens, everything, large])
def test_arrows_of_snapshots_too(history: Callable[[], History]) -> None:
    _check_places(diagram(history()))


def _check_places(drawing: Diagram) -> None:
    points = drawing.points
    for arrow in (*drawing.messages, *drawing.markers):
        if arrow.sent is not None and arrow.received is not None:
            assert points[arrow.sent].column < points[arrow.received].column
            assert points[arrow.sent].place < points[arrow.received].place
    for lane in range(len(drawing.nodes)):
        own = [point for point in points if point.lane == lane]
        for one, other in itertools.pairwise(own):
            assert (one.column, one.place) <= (other.column, other.place)
            together = other.entry.event in ("recorded", "closed", "marker sent", "reported")
            assert together or (one.column < other.column and one.place < other.place)
    if drawing.head.unit == "ticks":
        columns: dict[float, list[int]] = {}
        for point in points:
            if point.lane is not None:
                columns.setdefault(point.entry.time, []).append(point.column)
                assert point.entry.time <= point.place < point.entry.time + 1
        for one_tick, later in itertools.pairwise(sorted(columns)):
            assert max(columns[one_tick]) < min(columns[later])


def test_what_a_node_does_in_one_step_around_a_snapshot_is_one_point() -> None:
    drawing = diagram(tokens())
    (cut,) = drawing.cuts
    for lane, rank in cut.recorded.items():
        here = [p.entry.event for p in drawing.points if p.lane == lane and p.column == drawing.points[rank].column]
        assert here.count("recorded") == 1
        assert here.count("marker sent") == 2
        assert set(here) <= {"marker received", "recorded", "closed", "marker sent", "reported"}


def test_columns_are_few() -> None:
    """Or a page would be empty for the most part: what happens side by side stands one above the other."""
    drawing = diagram(by_chance(3, nodes=8, entries=4000))
    assert drawing.columns < 4000 / 2.5


# --- Cuts. ---


def test_messages_in_flight_are_those_sent_before_and_received_behind_the_cut() -> None:
    """Against the entries themselves, not against what was reported."""
    for history in (tokens(), everything(), large(60, 5)):
        drawing = diagram(history)
        cut = drawing.cuts[0]
        order: dict[str | None, list[Entry]] = {}
        for entry in history.entries:
            order.setdefault(entry.node, []).append(entry)
        before = {
            node: own[
                : next(k for k, e in enumerate(own) if (e.event, e.detail.get("snapshot")) == ("recorded", cut.id))
            ]
            for node, own in order.items()
            if node is not None
        }
        sent = {(n, e.detail["to"], e.detail["number"]) for n, own in before.items() for e in own if e.event == "sent"}
        taken = {
            (e.detail["from"], n, e.detail["number"]) for n, own in before.items() for e in own if e.event == "received"
        }
        drawn = [drawing.messages[rank] for rank in cut.in_flight]
        assert {(drawing.nodes[a.src], drawing.nodes[a.dst], a.number) for a in drawn} == sent - taken
        assert cut.total == len(sent - taken) > 0


def test_cuts_are_told_by_how_they_ended() -> None:
    first, second = diagram(everything()).cuts
    assert (first.number, first.status, first.verified, first.error) == (0, "completed", True, None)
    assert (second.number, second.status, second.error) == (1, "abandoned", "alpha refused")
    assert second.recorded.keys() == {1}
    (unfinished,) = diagram(POOR["the first half"]()).cuts
    assert unfinished.status == "open"
    (unnumbered,) = diagram(POOR["no supervisor"]()).cuts
    assert (unnumbered.number, unnumbered.status, unnumbered.total) == (None, "open", diagram(tokens()).cuts[0].total)


def test_the_cut_that_is_drawn() -> None:
    drawing = diagram(everything())
    assert chosen_cut(drawing) is drawing.cuts[0], "the last that completed"
    assert chosen_cut(drawing, 1) is drawing.cuts[1]
    with pytest.raises(NoSuchCut):
        chosen_cut(drawing, 2)
    assert chosen_cut(diagram(by_chance(1))) is None
    unfinished = diagram(POOR["the first half"]())
    assert chosen_cut(unfinished) is unfinished.cuts[0]


def test_what_is_wrong_with_a_log_is_noticed() -> None:
    assert diagram(everything()).notices == (
        "alpha: 12 entries are missing, the log had reached its size",
        "gamma died: gamma: killed by SIGKILL",
        "violated: snapshot 0: not conserved",
    )
    assert diagram(POOR["the first half"]()).notices == ("x.log:92 is damaged",)
    assert diagram(Story("A").history).notices == ("the log has no entries",)


def test_a_report_that_lies_about_its_count_takes_no_time() -> None:
    story = Story("A", "B")
    story.add(0, "A", "reported", snapshot="0-A-1", channels={"B": [1, 10**18], "C": [10**30, 5], "A": [1, -3]})
    (cut,) = diagram(story.history).cuts
    assert cut.in_flight == ()


# --- SVG. ---


def svg_of(history: History, **options: Any) -> ElementTree.Element:
    drawing = diagram(history)
    return ElementTree.fromstring(svg_text(drawing, chosen_cut(drawing), **options))


def places_of(root: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    found = []
    for element in root.iter(f"{SVG}path"):
        if element.get("class") == kind and element.get("transform"):
            x, y = re.findall(r"[-\d.]+", element.attrib["transform"])[:2]
            found.append((float(x), float(y)))
    return found


def kinds_of(root: ElementTree.Element) -> list[str]:
    return [element.get("class", "") for element in root.iter()]


def test_the_cut_goes_through_the_recorded_points() -> None:
    root = svg_of(tokens())
    (cut,) = [
        element for element in root.iter(f"{SVG}path") if element.get("class") == "cut" and "C" in element.attrib["d"]
    ]
    numbers = [float(number) for number in re.findall(r"[-\d.]+", cut.attrib["d"])]
    # M x top V y, then six numbers a curve, of which the last two are the next point.
    points, rest = [(numbers[0], numbers[2])], numbers[3:-1]
    points += [(rest[k + 4], rest[k + 5]) for k in range(0, len(rest), 6)]
    recorded = places_of(root, "recorded")
    assert len(recorded) == 3 + 1, "and one in the legend"
    assert points == sorted(recorded[:3], key=lambda point: point[1])


def test_messages_in_flight_stand_out_where_they_cross_the_cut() -> None:
    root = svg_of(tokens())
    total = diagram(tokens()).cuts[0].total
    kinds = kinds_of(root)
    assert kinds.count("flying") + kinds.count("flying unended") == total + 1, "and one in the legend"
    assert len(places_of(root, "crossing")) == total


def test_a_large_log_is_drawn_around_its_cut_and_says_so() -> None:
    root = svg_of(large())
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert any("the part around the cut" in text for text in texts)
    assert len(places_of(root, "recorded")) == 8 + 1
    assert 800 <= float(root.attrib["width"]) <= 1000
    assert len(list(root.iter())) < 4000


def test_a_part_of_the_time_is_drawn() -> None:
    root = svg_of(everything(), start=0.00004, end=0.00007)
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert any("the part asked for, 0.031 ms to 0.071 ms of 0.120 ms" in text for text in texts)
    nothing = svg_of(everything(), start=5.0)
    assert any("nothing in it" in "".join(element.itertext()) for element in nothing.iter(f"{SVG}text"))
    everywhere = svg_of(by_chance(1, nodes=2, entries=6000), start=0.0)
    assert "as much as fits" in "".join(everywhere.itertext())
    assert float(everywhere.attrib["width"]) < 10 * MOST_COLUMNS


def test_a_picture_without_a_cut_and_one_that_was_not_completed() -> None:
    drawing = diagram(everything())
    assert "cut" not in kinds_of(ElementTree.fromstring(svg_text(drawing, None)))
    abandoned = ElementTree.fromstring(svg_text(drawing, drawing.cuts[1]))
    assert "cut open" in kinds_of(abandoned)
    assert "past" not in kinds_of(abandoned), "what was recorded so far divides nothing"
    assert "abandoned" in "".join(abandoned.itertext())


def test_of_many_nodes_the_first_are_drawn_and_it_says_so() -> None:
    root = svg_of(large(20, MOST_NODES + 10))
    assert f"{MOST_NODES + 10} nodes, " in "".join(root.itertext())
    assert f"the first {MOST_NODES} nodes shown" in "".join(root.itertext())
    assert kinds_of(root).count("lane") == MOST_NODES
    assert len(places_of(root, "recorded")) == MOST_NODES + 1
    height = float(root.attrib["height"])
    assert all(y < height for kind in ("recorded", "crossing", "glyph") for _, y in places_of(root, kind))


# --- Hostile text. ---


class Tags(HTMLParser):
    """Note every element and attribute that a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attributes)))


def test_a_hostile_log_makes_no_element_of_a_page() -> None:
    assert Tags(text_of("html", hostile())).found == Tags(text_of("html", tokens())).found


def test_a_hostile_log_makes_no_element_of_a_picture() -> None:
    root = ElementTree.fromstring(text_of("svg", hostile()))
    assert {element.tag for element in root.iter()} <= {
        SVG + tag for tag in ("svg", "title", "style", "rect", "clipPath", "text", "path", "g", "circle")
    }
    names = {name for element in root.iter() for name in element.attrib}
    assert not [name for name in names if name.startswith("on") or "href" in name]


def test_a_page_is_given_everything_as_data() -> None:
    page = text_of("html", hostile())
    (data,) = re.findall(r'<script type="application/json" id="log">(.*?)</script>', page, re.DOTALL)
    assert not set("<>&") & set(data)
    log = json.loads(data)
    assert log["nodes"] == list(hostile().head.nodes)
    logged = [detail["text"] for detail in log["detail"].values() if "text" in detail]
    assert logged == HOSTILE
    payloads = [json.loads(detail["payload"]) for detail in log["detail"].values() if "payload" in detail]
    assert payloads == [{text: [text, {"$set": [text]}]} for text in HOSTILE]


def test_a_page_may_run_its_own_script_alone_and_load_nothing() -> None:
    page = text_of("html", tokens())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = ["sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    assert policy == (
        f"default-src 'none'; script-src '{hashes[0]}'; style-src '{hashes[1]}'; base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"(src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page.replace("img src", ""))
    assert "innerHTML" not in script
    assert "eval" not in script


# --- Pages of large logs. ---


def data_of(page: str) -> Any:
    return json.loads(re.findall(r'id="log">(.*?)</script>', page, re.DOTALL)[0])


def test_a_page_of_a_large_log_holds_a_part_around_the_cut_and_says_so() -> None:
    drawing = diagram(large(200))
    cut = chosen_cut(drawing)
    data = data_of(html_text(drawing, cut, max_entries=400))
    assert len(data["lane"]) == 400
    assert data["total"] == len(drawing.points)
    assert data["notices"] == [
        f"This page holds 400 of the log's {len(drawing.points):,} entries, around the cut; the log has all"
    ]
    assert min(data["column"]) == 0
    assert max(data["column"]) == data["columns"] - 1
    assert min(data["cuts"][0]["recorded"]) >= 0, "the whole cut"
    for arrows in (data["messages"], data["markers"]):
        ends = set(arrows["sent"]) | set(arrows["received"])
        assert max(ends) < 400
        assert min(ends) >= -2
    assert -2 in data["messages"]["sent"]
    assert -2 in data["messages"]["received"]
    assert len(data["cuts"][0]["flying"]) == cut.total if cut else False
    beginning = data_of(html_text(diagram(by_chance(1)), None, max_entries=100))
    assert beginning["notices"] == ["This page holds 100 of the log's 300 entries, from the beginning; the log has all"]


def test_values_that_would_make_a_page_too_large_are_left_out_and_it_says_so() -> None:
    drawing = diagram(by_chance(1))
    data = data_of(html_text(drawing, None, max_values=100))
    assert re.fullmatch(r"\d+ values are left out, .*", data["notices"][0])
    values = [detail["payload"] for detail in data["detail"].values() if "payload" in detail]
    assert values[0].startswith('{"k": ')
    assert values[-1].startswith('{"$size": ')


def test_numbers_that_javascript_would_round_are_kept_as_text() -> None:
    story = Story("A", "B")
    story.send(0.1, "A", "B", {"int": 2**70 + 1, "float": 1.0})
    data = data_of(text_of("html", story.history))
    assert data["detail"]["0"]["payload"] == '{"int": 1180591620717411303425, "float": 1.0}'


# --- ShiViz. ---


@pytest.mark.parametrize(
    "history", [tokens, everything, hostile, lambda: by_chance(2), lambda: by_chance(3, unit="ticks")]
)
def test_clocks_tell_what_happened_before_what(history: Callable[[], History]) -> None:
    """Against reachability along node lines and arrows."""
    log = history()
    drawing = diagram(log)
    after: dict[tuple[str, int], list[tuple[str, int]]] = {}
    sent: dict[tuple[Any, ...], tuple[str, int]] = {}
    for entry in log.entries:
        if entry.node is None:
            continue
        me, detail = (entry.node, entry.index), entry.detail
        after.setdefault(me, [])
        after.setdefault((entry.node, entry.index - 1), []).append(me)
        if entry.event in ("sent", "marker sent"):
            sent[entry.node, detail["to"], detail["number"], detail.get("snapshot")] = me
    for entry in log.entries:
        if entry.event in ("received", "marker received"):
            detail = entry.detail
            cause = sent.get((detail["from"], entry.node, detail["number"], detail.get("snapshot")))
            if cause is not None:
                after[cause].append((str(entry.node), entry.index))
    clocks = {
        (str(drawing.points[rank].entry.node), drawing.points[rank].entry.index): (
            drawing.points[rank].lane or 0,
            dict(clock),
        )
        for rank, clock in vector_clocks(drawing)
    }
    for one, (lane, clock) in clocks.items():
        reached, todo = set[tuple[str, int]](), [one]
        while todo:
            for following in after[todo.pop()]:
                if following not in reached:
                    reached.add(following)
                    todo.append(following)
        told = {other for other, (_, its) in clocks.items() if other != one and its.get(lane, 0) >= clock[lane]}
        assert told == reached


@pytest.mark.parametrize("history", [tokens, everything, hostile])
def test_lines_are_what_shiviz_reads(history: Callable[[], History]) -> None:
    first, second, *lines = shiviz_text(diagram(history())).splitlines()
    assert first == PARSER
    assert second == "", "no delimiter: one execution"
    parser = re.compile(PARSER.replace("(?<", "(?P<"))
    matches = [match for line in lines if (match := parser.fullmatch(line))]
    assert len(matches) == len(lines) == sum(entry.node is not None for entry in history().entries)
    hosts = {match["host"] for match in matches}
    seen: dict[str, int] = {}
    for match in matches:
        clock = json.loads(match["clock"])
        assert clock.keys() <= hosts
        assert all(count >= 1 for count in clock.values())
        seen[match["host"]] = seen.get(match["host"], 0) + 1
        assert clock[match["host"]] == seen[match["host"]]
        float(match["time"])


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
def test_the_expression_is_one_of_javascript(tmp_path: Path) -> None:
    """Twice: as it stands, and in the way ShiViz makes groups without names of it."""
    (tmp_path / "log.txt").write_text(shiviz_text(diagram(everything())))
    program = r"""
        const [parser, , ...lines] = require("fs").readFileSync("log.txt", "utf8").split("\n");
        const text = lines.join("\n"), plain = parser.replace(/\(\?<\w+?>/g, "(");
        const named = [...text.matchAll(new RegExp(parser, "gm"))].map((match) => JSON.parse(match.groups.clock));
        console.log(lines.length - 1, named.length, [...text.matchAll(new RegExp(plain, "gm"))].length);
    """
    done = run(["node", "-e", program], cwd=tmp_path)
    count = sum(entry.node is not None for entry in everything().entries)
    assert done.stdout.split() == [str(count)] * 3, done.stderr


def test_clocks_that_would_fill_a_disk_are_refused(export: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooManyNumbers):
        shiviz_text(diagram(everything()), most=50)
    assert len(shiviz_text(diagram(everything()), most=500)) > 1000
    monkeypatch.setattr("mpsnap.cli.export.shiviz_text", lambda drawing: shiviz_text(drawing, most=50))
    status, _, stderr = export("run.log", "--as", "shiviz")
    assert status == 2
    assert "run.log: 41 entries of 3 nodes are too many for vector clocks; try: --as html" in stderr


# --- Perfetto. ---


@pytest.mark.parametrize("history", [tokens, everything, hostile, large, POOR["no sender"]])
def test_traces_keep_the_rules_of_the_format(history: Callable[[], History]) -> None:
    drawing = diagram(history())
    document = json.loads(perfetto_text(drawing), parse_constant=pytest.fail)
    assert document.keys() == {"displayTimeUnit", "otherData", "traceEvents"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    slices: dict[int, list[tuple[float, float]]] = {}
    flows: dict[int, list[dict[str, Any]]] = {}
    spans: dict[int, list[dict[str, Any]]] = {}
    names: dict[int, str] = {}
    for event in document["traceEvents"]:
        assert {"ph", "pid", "tid", "ts", "name"} <= event.keys()
        assert type(event["pid"]) is type(event["tid"]) is int
        assert type(event["ts"]) in (int, float)
        assert event["ts"] >= 0
        assert type(event["name"]) is str
        phase = event["ph"]
        assert phase in "MXsfbeC"
        if phase == "X":
            assert event["dur"] > 0
            assert isinstance(event["args"], dict)
            slices.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
        elif phase in "sf":
            assert event["cat"] in ("message", "marker")
            flows.setdefault(event["id"], []).append(event)
        elif phase in "be":
            assert event["cat"] == "snapshot"
            spans.setdefault(event["id"], []).append(event)
        elif phase == "C":
            assert all(type(value) is int and value >= 0 for value in event["args"].values())
        elif event["name"] == "thread_name":
            names[event["tid"]] = event["args"]["name"]
    assert sorted(names) == list(range(1, len(drawing.nodes) + 1))
    assert sum(map(len, slices.values())) == sum(point.lane is not None for point in drawing.points)
    for track in slices.values():
        for (_, end), (start, _) in itertools.pairwise(sorted(track)):
            assert end <= start + 1e-9, "slices of a track that overlap are drawn wrong"
    arrows = [a for a in (*drawing.messages, *drawing.markers) if a.sent is not None and a.received is not None]
    assert len(flows) == len(arrows)
    for first, last in flows.values():
        assert (first["ph"], last["ph"], last["bp"]) == ("s", "f", "e")
        assert (first["name"], first["cat"], first["pid"]) == (last["name"], last["cat"], last["pid"])
        assert first["ts"] < last["ts"]
        for event in (first, last):
            assert any(low <= event["ts"] < high for low, high in slices[event["tid"]]), "bound to a slice"
    for first, last in spans.values():
        assert (first["ph"], last["ph"]) == ("b", "e")
        assert first["name"] == last["name"]
        assert first["ts"] <= last["ts"]


def test_a_tick_of_a_trace_is_a_millisecond_and_a_second_a_second() -> None:
    ticks = [event["ts"] for event in trace_events(diagram(tokens())) if event["ph"] == "X"]
    assert min(ticks) == 1000
    seconds = [event["ts"] for event in trace_events(diagram(everything())) if event["ph"] == "X"]
    assert min(seconds) == 10


# --- Graphviz. ---


@pytest.mark.skipif(shutil.which("dot") is None, reason="there is no dot of Graphviz here")
@pytest.mark.parametrize("history", [tokens, everything, hostile, POOR["no nodes"]])
@pytest.mark.parametrize("with_cut", [True, False])
def test_graphviz_draws_what_was_meant(history: Callable[[], History], with_cut: bool) -> None:
    drawing = diagram(history())
    cut = chosen_cut(drawing) if with_cut else None
    done = subprocess.run(["dot", "-Tsvg"], input=dot_text(drawing, cut), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    root = ElementTree.fromstring(done.stdout)
    groups = [element.get("class") for element in root.iter(f"{SVG}g")]
    assert groups.count("node") == len(drawing.nodes)
    flying = {(drawing.messages[rank].src, drawing.messages[rank].dst) for rank in cut.in_flight} if cut else set()
    assert groups.count("edge") >= len(flying)
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert not [text for text in texts if "bold" in text and "<b>" not in text]
    for name in drawing.nodes:
        assert any(text.startswith(name[:20].split("\\")[0]) for text in texts), name


def test_a_graph_at_a_cut_has_states_and_messages_oldest_first() -> None:
    text = text_of("dot", everything())
    assert '"beta\\nbalance: 105"' in text
    assert 'n0 -> n1 [label="1 in flight\\n(1, \\"two\\")"' in text
    assert 'n2 [label="gamma\\n<70000 bytes>"]' in text
    end = dot_text(diagram(everything()))
    assert "the end of the log, 2 messages not received" in end
    assert '"alpha\\n3 sent, 0 received"' in end


# --- Words. ---


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"tokens": 3}, "tokens: 3"),
        ({}, "{}"),
        ([1, None, True, "a\n"], '[1, null, true, "a\\n"]'),
        ({"$tuple": [1]}, "(1,)"),
        ({"$set": [1, 2]}, "{1, 2}"),
        ({"$size": 70000}, "<70000 bytes>"),
        ({"$bytes": "AA=="}, '{$bytes: "AA=="}'),
        ({"a": {"b": "\u202e"}}, 'a: {b: "\\u202e"}'),
        ({"\x1b": 1}, '"\\u001b": 1'),
        ("x" * 100, '"' + "x" * 36 + "..."),
    ],
)
def test_values_in_brief(value: object, text: str) -> None:
    assert brief(value) == text


def test_every_event_has_words() -> None:
    drawing = diagram(everything())
    names = {cut.id: f"snapshot {cut.number}" for cut in drawing.cuts}
    told = [described(point.entry, names) for point in drawing.points if point.lane is not None]
    assert "recorded, snapshot 0: balance: 95" in told
    assert "command: stop: false" in told
    assert "12 entries missing" in told
    assert "died: gamma: killed by SIGKILL" in told
    assert all(text.isprintable() for text in (described(p.entry, {}) for p in diagram(hostile()).points))


# --- The verb. ---


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run the verb in a folder with a log, and return status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.log").write_bytes(written(everything()))

    def call(*arguments: str) -> tuple[object, str, str]:
        status: object
        try:
            status = main(["export", *arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize("form", FORMS)
def test_the_verb_writes_what_the_view_says(export: Any, tmp_path: Path, form: str) -> None:
    expected = text_of(form, everything())
    status, stdout, stderr = export("run.log", "--as", form, "-o", f"out.{form}")
    assert (status, stdout) == (0, "")
    assert (tmp_path / f"out.{form}").read_text() == expected
    assert export("run.log", "--as", form)[:2] == (0, expected)
    assert export("run.log", "--as", form, "-o", "-")[1] == expected
    assert (PARSER in stderr) == (form == "shiviz"), "what must be entered by hand is told"


def test_a_snapshot_is_chosen(export: Any) -> None:
    drawing = diagram(everything())
    assert export("run.log", "--as", "dot", "--snapshot", "1")[1] == dot_text(drawing, drawing.cuts[1])
    assert export("run.log", "--as", "svg", "--snapshot", "none")[1] == svg_text(drawing)
    assert data_of(export("run.log", "--as", "html", "--snapshot", "1")[1])["selected"] == 1
    expected = svg_text(drawing, drawing.cuts[0], 0.00004, 0.00007)
    assert export("run.log", "--as", "svg", "--from", "0.00004", "--to", "7e-5")[1] == expected


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["none.log", "--as", "svg"], ["none.log: cannot be read: No such file or directory", "try: "]),
        ([".", "--as", "svg"], [".: cannot be read: Is a directory"]),
        (["", "--as", "svg"], ["'': cannot be read"]),
        (["a\x00b", "--as", "svg"], ["cannot be read: embedded null byte"]),
        (["empty.log", "--as", "svg"], ["empty.log:1: not an event log of mpsnap", "try: "]),
        (["other.json", "--as", "svg"], ["other.json:1: not an event log of mpsnap"]),
        (["/dev/zero", "--as", "svg"], ["/dev/zero:1: not an event log"]),
        (["later.log", "--as", "svg"], ["later.log:1: a log of format 2, this version reads 1"]),
        (["run.log"], ["--as"]),
        (["run.log", "--as", "pdf"], ["--as", "'pdf'", "html"]),
        (["run.log", "--as", "svg", "--snapshot", "7"], ["run.log: there is no snapshot 7", "try: --snapshot 0, 1"]),
        (["run.log", "--as", "svg", "--snapshot", "-1"], ["--snapshot"]),
        (["run.log", "--as", "svg", "--snapshot", "last"], ["--snapshot"]),
        (["run.log", "--as", "shiviz", "--snapshot", "0"], ["--snapshot: is for html, svg and dot"]),
        (["run.log", "--as", "html", "--to", "1"], ["--to: is for --as svg, not for html"]),
        (["run.log", "--as", "svg", "--from", "2", "--to", "1"], ["--from: 2 is after --to 1"]),
        (["run.log", "--as", "svg", "--from", "nan"], ["--from", "'nan' is not a time"]),
        (["run.log", "--as", "svg", "--from", "-1"], ["--from"]),
        (["run.log", "--as", "svg", "-o", "no/such/folder"], ["no/such/folder: cannot be written: No such file"]),
        (["run.log", "--as", "svg", "-o", "."], [".: cannot be written: Is a directory"]),
        (["run.log", "--as", "svg", "-o", "run.log"], ["-o run.log: this is the log itself"]),
        (["run.log", "--as", "svg", "--form", "x"], ["there is no option --form", "try: --from"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else None,
)
def test_bad_input_is_refused_in_one_line(
    export: Any, tmp_path: Path, arguments: list[str], fragments: list[str]
) -> None:
    (tmp_path / "empty.log").touch()
    (tmp_path / "other.json").write_text('{"nodes": []}\n')
    (tmp_path / "later.log").write_text('{"log": 2}\n')
    before = (tmp_path / "run.log").read_bytes()
    status, stdout, stderr = export(*arguments)
    assert (status, stdout) == (2, ""), stderr
    assert stderr.startswith("mpsnap: error: ")
    assert stderr.count("\n") == 1
    assert stderr[:-1].isprintable()
    for fragment in fragments:
        assert fragment in stderr
    assert (tmp_path / "run.log").read_bytes() == before


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_log_is_drawn_to_its_last_good_line(export: Any, tmp_path: Path, form: str) -> None:
    whole = written(everything())
    for damaged in (whole[:-20], whole + b"\x00\xff\n" + whole, whole + b'{"node": "alpha"}\n'):
        (tmp_path / "bad.log").write_bytes(damaged)
        status, stdout, stderr = export("bad.log", "--as", form)
        assert status == 0
        assert stdout
        assert re.match(r"mpsnap: bad.log:\d+ is damaged; what stands before it, \d+ entries, is read\n", stderr)
    if form in ("html", "svg", "perfetto"):
        assert "is damaged" in html.unescape(stdout), "it is told where it is looked at, too"


def test_help_ends_with_examples(export: Any) -> None:
    status, stdout, _ = export("--help")
    assert status == 0
    assert stdout.splitlines()[-1].strip().startswith("python -m mpsnap export")
    for form in FORMS:
        assert f"  {form} " in stdout


@pytest.mark.processes
def test_a_reader_that_goes_away_and_a_full_disk_are_no_crash(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_bytes(written(large(800)))
    command = " ".join([*COMMAND, "export", "run.log", "--as", "perfetto"])
    done = run(f"set -o pipefail; {command} | head -c 10 > /dev/null", cwd=tmp_path)
    assert (done.status, done.stderr) == (3, "")
    done = run(f"{command} > /dev/full", cwd=tmp_path)
    assert (done.status, done.stderr) == (3, "mpsnap: error: stdout: cannot be written: No space left on device\n")
    done = mpsnap("export", "run.log", "--as", "svg", "-o", "/dev/full", cwd=tmp_path, status=3)
    assert done.error == "/dev/full: cannot be written: No space left on device"


@pytest.mark.processes
def test_a_large_log_is_read_without_a_bar_where_there_is_no_terminal(tmp_path: Path) -> None:
    """And in a terminal of another encoding nothing is lost: all forms are ASCII."""
    (tmp_path / "run.log").write_bytes(written(large(200)))
    done = mpsnap("export", "run.log", "--as", "dot", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii:strict"})
    assert (done.stderr, done.stdout) == ("", text_of("dot", large(200)))


def test_entries_that_nobody_could_sort_or_write_again_are_damage() -> None:
    good = written(everything()).splitlines(keepends=True)[:3]
    for time in ("NaN", "Infinity", "-Infinity", "1e999", "-1", "1e15", "1" + 400 * "0", "true", "null", '"1"'):
        line = b'{"node": "alpha", "index": 2, "time": %s, "event": "log", "text": ""}\n' % time.encode()
        history = parse_log([*good, line], "x.log")
        assert history.flaw == "x.log:4 is damaged; what stands before it, 2 entries, is read", time
    for payload in ("NaN", "1e999", "[-Infinity]"):
        line = b'{"node": "alpha", "index": 2, "time": 1, "event": "log", "text": "", "x": %s}\n' % payload.encode()
        assert parse_log([*good, line], "x.log").flaw
    for sent in ("[]", "3", '{"beta": "1"}', '{"beta": null}'):
        line = b'{"node": "alpha", "index": 2, "time": 1, "event": "dropped", "count": 1, "sent": %s}\n' % sent.encode()
        assert parse_log([*good, line], "x.log").flaw
