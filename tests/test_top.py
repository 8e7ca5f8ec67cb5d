"""`top` on a terminal as its users meet it: a process of its own on a pseudo-terminal, and what stands on the screen.

And the screen by itself, which is a pure function: it fits whatever size there is, and nothing in a document gets
through to the terminal.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_run import Document, FakeRun, channel_of, digest_of, node_of, ring_of, status_of
from hypothesis import given, settings
from hypothesis import strategies as st
from terminal import SECONDS, Terminal

from mpsnap.core.errors import ClusterError
from mpsnap.server.why import why_document
from mpsnap.views.screen import SORTS, Chosen, Known, in_order, screen


def busy(count: int = 8, **facts: Any) -> Document:
    """Return a run of which every node has another rate, backlog, share and size."""
    names = [f"N{k + 1}" for k in range(count)]
    nodes = [
        node_of(
            name,
            *(("running", "on_message") if k % 2 else ("waiting", "waiting")),
            handled_per_s=float(100 * k),
            backlog=count - k,
            cpu_percent=float((k * 7) % count),
            memory_bytes=10**6 * ((k * 3) % count + 1),
        )
        for k, name in enumerate(names)
    ]
    channels = [channel_of(src, dst, k) for k, (src, dst) in enumerate((a, b) for a in names for b in names if a != b)]
    return status_of(nodes, channels, [digest_of(0), digest_of(1, "recording")], **facts)


@pytest.fixture
def folder(runs: Path) -> Path:
    return runs


@pytest.fixture
def run(folder: Path) -> Iterator[FakeRun]:
    with FakeRun(folder, busy()) as run:
        yield run


# --- On a terminal. ---


def test_it_shows_nodes_channels_and_snapshots_and_leaves_nothing_on_the_screen(run: FakeRun, folder: Path) -> None:
    with Terminal(folder) as top:
        text = top.see_text(
            "tokens-4711  running for 12.3 s  tokens on ring:8",
            "8 nodes",
            "> N1",
            *(f"  N{k}  " for k in range(2, 9)),
            "N8->N7  ",
            "N8->N6  ",
            "SNAPSHOTS",
            "#0     N3       completed",
            "#1     N3       recording      1/2             waits for N2; N2->N1",
        )
        assert text.index("N8->N7  ") < text.index("N8->N6  ")
        # What changes is drawn in place, at once.
        run.show(busy(uptime_s=77.0))
        top.see_text("running for 77.0 s")
        run.push("snapshot", digest_of(1))
        top.see_none("recording")
        run.push("snapshot", digest_of(None, "committing", id="0-N9-1"))
        top.see_text("0-N9-1 ")
        top.press("q")
        assert top.end() == (0, "")


def test_keys_steer_the_run(run: FakeRun, folder: Path) -> None:
    run.answers["snapshot"] = lambda args: {"digest": digest_of(7, "recording", initiators=args["nodes"] or ["N1"])}
    run.answers["pause"] = lambda args: {"paused": args["nodes"]}
    run.answers["unpause"] = lambda args: {"paused": []}
    with Terminal(folder) as top:
        top.see_text("> N1")
        top.press("\x1bOB")
        top.see_text("> N2")
        top.press("jjk")
        top.see_text("> N3")
        top.press("s")
        top.see_text("Snapshot 7 (0-N3-15) from N3")
        top.press("S")
        top.see_text("Snapshot 7 (0-N3-15) from N1")
        top.press("p")
        top.see_text("paused: N3")
        status = busy()
        status["nodes"][2].update(paused=True, status="paused")
        run.show(status)
        top.see_text("paused ")
        top.see(lambda _: any("N3" in line and "paused  " in line for line in top.lines), "pause of N3")
        top.press("p")
        top.see_text("paused: no node")
        run.answers["snapshot"] = _refuse
        top.press("s")
        top.see_text(r"N3 is \x1b]0;gone\x07")
        top.press("q")
        assert top.end() == (0, "")
    assert run.asked == [
        ("snapshot", {"nodes": ["N3"]}),
        ("snapshot", {"nodes": []}),
        ("pause", {"nodes": ["N3"]}),
        ("unpause", {"nodes": ["N3"]}),
        ("snapshot", {"nodes": ["N3"]}),
    ]


def _refuse(_: Document) -> Any:
    raise ClusterError("N3 is \x1b]0;gone\x07")


def test_keys_change_what_is_shown(run: FakeRun, folder: Path) -> None:
    run.answers["why"] = lambda _: why_document(run.status, {})
    with Terminal(folder) as top:
        top.see_text("by topology")
        for order, first in (("rate", "N8"), ("backlog", "N1"), ("cpu", "N2"), ("memory", "N6"), ("topology", "N1")):
            top.press("o")
            # The line of the first node comes after the title and the header.
            title = top.lines.index(next(line for line in top.lines if line.startswith("NODES")))
            top.see(
                lambda _, title=title, order=order, first=first: (  # type: ignore[misc]
                    top.lines[title] == f"NODES  by {order}" and top.lines[title + 2][2:].split()[0] == first
                ),
                f"{first} as the first by {order}",
            )
        top.press("c")
        top.see_none("CHANNELS")
        top.press("n")
        top.see_none("NODES")
        top.press("c")
        top.see_text("CHANNELS")
        # Without nodes, channels are what is scrolled.
        top.see_text("N8->N7")
        top.press("\x1b[6~")
        top.see_none("N8->N7")
        top.press("\x1b[1~")
        top.see_text("N8->N7")
        top.press("h")
        top.see_text("take a snapshot that begins at the selected node")
        top.press("w")
        top.see_text("about to take: ")
        top.see_text("WHY", "all is well")
        top.press("wn")
        top.see_text("NODES")
        top.press("q")
        assert top.end()[0] == 0


def test_a_run_of_64_nodes_can_be_walked_through(folder: Path) -> None:
    with FakeRun(folder, busy(64)), Terminal(folder) as top:
        top.see_text("NODES  1-", "CHANNELS  1-3 of 4032", "SNAPSHOTS")
        for step in range(1, 64):
            top.press("j")
            if step % 9 == 0:
                top.see_text(f"> N{step + 1} ")
        top.see_text("> N64")
        assert top.see_text("of 64, by")
        top.press("\x1b[5~")
        top.see_text("> N54")
        # Sorted in another way, what is selected stays so, and in sight.
        top.press("o")
        top.see_text("by rate")
        top.see_text("> N54")
        top.press("q")
        assert top.end()[0] == 0


def test_another_size_is_another_screen(run: FakeRun, folder: Path) -> None:
    with Terminal(folder) as top:
        top.see_text("SNAPSHOTS")
        for rows, columns in ((50, 200), (10, 40), (3, 20), (1, 5), (24, 80)):
            top.resize(rows, columns)
            if rows >= 24:
                top.see(lambda _: "q quit" in top.lines[-1], "keys in the last line")
            else:
                start = ("mpsnap top  tokens-4711"[:columns])[: max(2, columns - 4)]
                top.see(lambda text, start=start: text.startswith(start), f"heading of {columns} columns")  # type: ignore[misc]
            if rows == 50:
                top.see_text("N5->N3")
        top.press("q")
        assert top.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_gives_the_terminal_back(run: FakeRun, folder: Path, number: signal.Signals) -> None:
    with Terminal(folder) as top:
        top.see_text("SNAPSHOTS")
        top.process.send_signal(number)
        assert top.end() == (130, "")


def test_ctrl_c_ends_it(run: FakeRun, folder: Path) -> None:
    with Terminal(folder) as top:
        top.see_text("SNAPSHOTS")
        top.press("\x03")
        assert top.end() == (130, "")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, "mpsnap: the run tokens-4711 has ended\n"),
        ({"what": "N1 died\x1b", "where": "N1", "try": None}, 3, "mpsnap: error: N1 died\\x1b\n"),
    ],
    ids=["in good order", "with an error"],
)
def test_it_ends_with_the_run_and_says_so(
    run: FakeRun, folder: Path, error: Document | None, status: int, said: str
) -> None:
    with Terminal(folder) as top:
        top.see_text("SNAPSHOTS")
        run.push("end", {"error": error})
        assert top.end() == (status, said)


def test_a_run_that_is_gone_without_a_word(run: FakeRun, folder: Path) -> None:
    with Terminal(folder) as top:
        top.see_text("SNAPSHOTS")
        run.vanish()
        status, said = top.end()
        assert status == 3
        assert "the run tokens-4711 is gone" in said


def test_what_goes_wrong_inside_gives_the_terminal_back(run: FakeRun, folder: Path) -> None:
    with Terminal(folder) as top:
        top.see_text("SNAPSHOTS")
        run.push("status", {"run": {}})
        status, said = top.end()
        assert status == 3
        assert said.startswith("mpsnap: error: KeyError: ")
        assert said.count("\n") == 1


def test_it_ends_after_so_many_looks(run: FakeRun, folder: Path) -> None:
    with Terminal(folder, "--count", "2") as top:
        top.see_text("SNAPSHOTS")
        run.show(busy(uptime_s=20.0))
        top.see_text("20.0 s")
        run.show(busy(uptime_s=30.0))
        assert top.end() == (0, "")


def test_that_nothing_is_heard_is_told(run: FakeRun, folder: Path) -> None:
    with Terminal(folder) as top:
        top.see_text("NO NEWS for ")
        top.press("q")
        assert top.end()[0] == 0


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u4e2d\n"


def hostile() -> Document:
    nodes = [node_of(HOSTILE, "frozen", HOSTILE, summary=HOSTILE), node_of("N2" + HOSTILE)]
    error = {"what": HOSTILE, "where": HOSTILE, "try": None}
    digest = digest_of(0, "abandoned", initiators=[HOSTILE], id=HOSTILE, error=error)
    return status_of(
        nodes, [channel_of(HOSTILE, "N2" + HOSTILE)], [digest], app=HOSTILE, topology=HOSTILE, name=HOSTILE, error=None
    )


def test_hostile_names_do_not_steer_the_terminal(folder: Path) -> None:
    with FakeRun(folder, hostile()) as run, Terminal(folder, columns=120) as top:
        run.answers["why"] = lambda _: why_document(run.status, {})
        run.answers["pause"] = lambda _: {"paused": [HOSTILE]}
        top.see_text(r"\x1b]0;owned\x07", "SNAPSHOTS")
        top.press("w")
        top.see_text("WHY")
        top.press("wp")
        top.see_text("paused: ")
        top.press("q")
        assert top.end()[0] == 0
    for sequence in (b"\x1b]", b"\x07", b"\xc2\x9b", b"\x9b", "\u202e".encode(), "\u4e2d".encode()):
        assert sequence not in top.written


@pytest.mark.parametrize(("term", "colours"), [("screen-256color", True), ("vt220", False)])
def test_colours_only_where_there_are_any(run: FakeRun, folder: Path, term: str, colours: bool) -> None:
    with Terminal(folder, TERM=term) as top:
        top.see_text("completed")
        top.press("q")
        top.see_text("completed")
    assert (b"\x1b[32m" in top.written) == colours
    if colours:
        with Terminal(folder, TERM=term, NO_COLOR="1") as plain:
            plain.see_text("completed")
        assert b"\x1b[32m" not in plain.written


def test_what_stays_the_same_is_not_drawn_again(run: FakeRun, folder: Path) -> None:
    with Terminal(folder) as top:
        top.see_text("SNAPSHOTS", "waits for N2; N2->N1")
        before = len(top.written)
        for k in range(20):
            run.show(busy(uptime_s=20.0 + k))
        top.see_text("39.0 s")
        assert len(top.written) - before < 20 * 40
        assert b"\x1b[2J" not in top.written[before:]


@pytest.mark.parametrize("term", ["dumb", "", "no-such-terminal"])
def test_a_terminal_that_cannot_be_drawn_on_gets_lines(run: FakeRun, folder: Path, term: str) -> None:
    with Terminal(folder, "--count", "1", columns=200, rows=60, TERM=term) as top:
        top.see_text("#1  0-N3-3")
        assert b"\x1b" not in top.written
        assert top.process.wait(SECONDS) == 0


# --- The screen by itself. ---


def text_of(lines: list[Any]) -> list[str]:
    return ["".join(piece.text for piece in line) for line in lines]


def shown(status: Document | None, chosen: Chosen, rows: int = 24, columns: int = 80, **known: Any) -> list[str]:
    facts: Mapping[str, Any] = {"why": None, "age_s": None, **known}
    return text_of(screen(Known("tokens-4711", status, facts["why"], facts["age_s"]), chosen, rows, columns))


@settings(max_examples=200)
@given(
    rows=st.integers(0, 60),
    columns=st.integers(0, 200),
    size=st.integers(0, 40),
    chosen=st.builds(
        Chosen,
        sort=st.sampled_from(list(SORTS)),
        selected=st.sampled_from([None, "N1", "N7", "N99"]),
        nodes=st.booleans(),
        channels=st.booleans(),
        why=st.booleans(),
        help=st.booleans(),
        first=st.integers(0, 100),
        line=st.integers(0, 10_000),
    ),
    told=st.booleans(),
    bad=st.booleans(),
)
def test_any_screen_is_filled_and_never_more_than_that(
    rows: int, columns: int, size: int, chosen: Chosen, told: bool, bad: bool
) -> None:
    status = hostile() if bad else busy(size) if size < 12 else ring_of(*busy(size)["nodes"])
    why = why_document(status, {}) if told else None
    lines = shown(status, chosen, rows, columns, why=why, age_s=7.0 if bad else None)
    assert len(lines) <= rows
    assert all(len(line) <= columns and line.isascii() and line.isprintable() for line in lines)
    if rows and columns:
        assert len(lines) == rows or rows < 3
    if columns >= 80 and rows >= 12 and chosen.nodes and size and not (chosen.why or chosen.help or bad):
        assert chosen.selected in [node["name"] for node in status["nodes"]]
        assert any(line.startswith(f"> {chosen.selected} ") for line in lines)


def test_before_anything_is_known_it_says_what_it_waits_for() -> None:
    lines = shown(None, Chosen())
    assert lines[0] == "mpsnap top: waiting for tokens-4711"
    assert lines[-1].startswith("q quit")
    assert len(lines) == 24


def test_equal_nodes_stay_in_order() -> None:
    nodes = [node_of(name, backlog=backlog) for name, backlog in (("B", 1), ("A", 1), ("C", 5))]
    assert [node["name"] for node in in_order(nodes, "backlog")] == ["C", "B", "A"]


def test_room_goes_to_those_who_need_it() -> None:
    few = busy(2)
    lines = shown(few, Chosen())
    # Two nodes leave room for all the rest.
    assert lines[2].startswith("NODES")
    assert lines[6].startswith("CHANNELS")
    many = shown(busy(40), Chosen())
    assert [line.split()[0] for line in many if line[:1].isupper()] == ["NODES", "CHANNELS", "SNAPSHOTS"]
    assert sum("->" in line for line in many) >= 3
