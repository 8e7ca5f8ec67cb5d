"""The event log as text: what is written is read, what breaks off is read to its last good line, causes come first."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsnap import parse_topology
from mpsnap.core.codec import Codec, Encoded, freeze
from mpsnap.core.errors import InputError
from mpsnap.core.history import Entry, Head, LogError, causal_order, entry_line, head_line, parse_log
from mpsnap.core.program import assign
from mpsnap.runtime.journal import BLOCK_EVENTS, FileJournal, JournalSpec, RunLog, read_part
from mpsnap.simulator.simulator import Simulator, random_delays

HEAD = Head("simulator", "ticks", "tokens", "ring:2", ("A", "B"), (("A", "B"), ("B", "A")))


def simulated(spec: str, seed: int, ticks: int = 30) -> list[Entry]:
    """Return the log of a simulation: causes before effects, by construction."""
    topology, programs = assign(parse_topology(spec), "mpsnap.apps.tokens:Tokens")
    entries: list[Entry] = []
    simulator = Simulator(topology, programs, random_delays(seed, 4), seed=seed, log=entries.append)
    for node in topology.nodes[:2]:
        simulator.advance(ticks // 2)
        simulator.snapshot([node])
    simulator.finish()
    return entries


def log_of(entries: Iterable[Entry]) -> bytes:
    return "".join(f"{line}\n" for line in (head_line(HEAD), *map(entry_line, entries))).encode()


def lines_of(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def test_what_is_written_is_read() -> None:
    entries = simulated("complete:3", 1)
    history = parse_log(lines_of(log_of(entries)), "x.log")
    assert (history.head, history.entries, history.flaw) == (HEAD, tuple(entries), None)
    assert {"sent", "received", "recorded", "marker sent", "marker received", "closed", "reported", "completed"} <= {
        entry.event for entry in entries
    }


@pytest.mark.parametrize("seed", range(4))
def test_a_log_cut_anywhere_is_read_to_its_last_whole_line(seed: int) -> None:
    entries = simulated("ring:2", 2)
    data = log_of(entries)
    start = len(head_line(HEAD)) + 1
    for at in random.Random(seed).sample(range(start, len(data)), 60):
        history = parse_log(lines_of(data[:at]), "x.log")
        whole = data[:at].count(b"\n") - 1
        assert history.entries == tuple(entries[:whole])
        assert (history.flaw is None) == (data[at - 1 : at] == b"\n")


def test_a_damaged_line_ends_what_is_read_and_is_named() -> None:
    lines = lines_of(log_of(simulated("ring:2", 3)))
    for damaged in (
        b"\n",
        b"[]\n",
        b"{}\n",
        b'{"node": 1}\n',
        b"\xff\xfe\n",
        lines[5][:20] + b"\n",
        b"[" * 99999 + b"\n",
    ):
        history = parse_log([*lines[:5], damaged, *lines[6:]], "x.log")
        assert len(history.entries) == 4
        assert history.flaw == "x.log:6 is damaged; what stands before it, 4 entries, is read"


@pytest.mark.parametrize("first", [b"", b"\n", b"{}\n", b"[1]\n", b'{"log": 2}\n', b"\x00\n", b'{"log": true}\n'])
def test_what_is_no_log_is_refused_by_its_first_line(first: bytes) -> None:
    with pytest.raises(LogError) as refused:
        parse_log([first] if first else [], "x.log")
    assert refused.value.where == "x.log:1"


# ------------------------------------------------------------------------ order


def by_node(entries: Iterable[Entry]) -> dict[str | None, list[Entry]]:
    parts: dict[str | None, list[Entry]] = {}
    for entry in entries:
        parts.setdefault(entry.node, []).append(entry)
    return parts


def check_causes(merged: list[Entry], known: set[tuple[object, ...]]) -> None:
    """Every item is received after it was sent, if its sending is in the log at all."""
    happened = set()
    for entry in merged:
        detail = entry.detail
        if entry.event in ("sent", "marker sent"):
            happened.add((entry.node, detail["to"], detail["number"], detail.get("snapshot")))
        elif entry.event in ("received", "marker received"):
            item = (detail["from"], entry.node, detail["number"], detail.get("snapshot"))
            assert item in happened or item not in known, entry


def sendings(entries: Iterable[Entry]) -> set[tuple[object, ...]]:
    return {
        (entry.node, entry.detail["to"], entry.detail["number"], entry.detail.get("snapshot"))
        for entry in entries
        if entry.event in ("sent", "marker sent")
    }


@given(st.integers(0, 10**6), st.sampled_from(["ring:3", "complete:4", "star:4"]))
@settings(max_examples=40, deadline=None)
def test_merged_entries_are_all_there_in_their_order_and_after_their_causes(seed: int, spec: str) -> None:
    """Whatever the clocks say: here each node's goes wrong by up to ten ticks, but never back."""
    draw = random.Random(seed)
    entries = simulated(spec, seed)
    parts = {
        node: [entry._replace(time=entry.time + offset) for entry in part]
        for node, part in by_node(entries).items()
        for offset in (draw.uniform(0, 10),)
    }
    merged = list(causal_order(parts))
    assert by_node(merged) == parts
    check_causes(merged, sendings(entries))


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_lost_beginning_or_end_holds_nobody_up(seed: int) -> None:
    draw = random.Random(seed)
    parts = by_node(simulated("complete:3", seed))
    lost = {node: part[: draw.randrange(len(part) + 1)] for node, part in parts.items()}
    merged = list(causal_order(lost))
    assert by_node(merged) == {node: part for node, part in lost.items() if part}
    check_causes(merged, sendings(entry for part in lost.values() for entry in part))


def test_what_was_dropped_is_not_waited_for() -> None:
    """What B receives was sent before A's log begins: it stands where its time says, not at the end."""
    parts: dict[str | None, list[Entry]] = {
        "A": [
            Entry("A", 9, 0.0, "dropped", {"count": 10, "sent": {"B": 3}}),
            Entry("A", 10, 5.0, "sent", {"to": "B", "number": 4, "payload": 0}),
        ],
        "B": [
            Entry("B", 0, 1.0, "received", {"from": "A", "number": 3}),
            Entry("B", 1, 2.0, "received", {"from": "A", "number": 4}),
        ],
    }
    assert [(entry.node, entry.event) for entry in causal_order(parts)] == [
        ("A", "dropped"),
        ("B", "received"),
        ("A", "sent"),
        ("B", "received"),
    ]


def test_a_log_that_contradicts_itself_is_merged_all_the_same() -> None:
    parts: dict[str | None, list[Entry]] = {
        "A": [
            Entry("A", 0, 0.0, "received", {"from": "B", "number": 1}),
            Entry("A", 1, 0.0, "sent", {"to": "B", "number": 1}),
        ],
        "B": [
            Entry("B", 0, 0.0, "received", {"from": "A", "number": 1}),
            Entry("B", 1, 0.0, "sent", {"to": "A", "number": 1}),
        ],
    }
    assert by_node(causal_order(parts)) == parts


# ------------------------------------------------------------- journals of nodes

STARTED = time.monotonic()


def write(path: Path, count: int, *, keep: int = 10**9, seed: int = 0) -> list[tuple[str, Any]]:
    """Write random events, and return what they were."""
    draw, numbers = random.Random(seed), {"A": 0, "B": 0}
    told: list[tuple[str, Any]] = []
    journal = FileJournal(JournalSpec(str(path), keep), ["A", "C"], ["A", "B"], pytest.fail)
    send = journal.sending(lambda dst, number, payload: None)
    for k in range(count):
        if draw.random() < 0.01:
            journal.turn(time.monotonic())
        kind = draw.choice(["sent", "received", "log"])
        if kind == "sent":
            dst = draw.choice(["A", "B"])
            numbers[dst] += 1
            payload = draw.choice([k, f"text {k}", (k, None), freeze({"k": k}, Codec()), freeze([[k]], Codec())])
            send(dst, numbers[dst], payload)
            told.append(("sent", (dst, numbers[dst])))
        elif kind == "received":
            journal.received("C")
            told.append(("received", "C"))
        else:
            journal.note("log", text=f"line {k}")
            told.append(("log", f"line {k}"))
    journal.close()
    return told


HEAD_OF_N = Head(
    "processes", "seconds", "x", "x", ("A", "B", "C", "N"), (("N", "A"), ("N", "B"), ("A", "N"), ("C", "N"))
)


def read(path: Path) -> list[Entry]:
    return list(read_part(str(path), "N", HEAD_OF_N, Codec(), started=STARTED))


def told_of(entries: Iterable[Entry]) -> Iterator[tuple[str, Any]]:
    for entry in entries:
        detail = entry.detail
        if entry.event == "sent":
            yield "sent", (detail["to"], detail["number"])
        elif entry.event == "received":
            yield "received", detail["from"]
        else:
            yield entry.event, detail["text"]


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    told = write(tmp_path / "n", 3 * BLOCK_EVENTS)
    entries = read(tmp_path / "n")
    assert list(told_of(entries)) == told
    assert [entry.index for entry in entries] == list(range(len(told)))
    assert [entry.detail["number"] for entry in entries if entry.event == "received"] == list(
        range(1, 1 + sum(event == "received" for event, _ in told))
    )
    times = [entry.time for entry in entries]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < time.monotonic() - STARTED


def test_a_journal_cut_anywhere_is_read_to_its_last_whole_block(tmp_path: Path) -> None:
    told = write(tmp_path / "n", 4 * BLOCK_EVENTS)
    data = (tmp_path / "n").read_bytes()
    lengths = set()
    for at in random.Random(1).sample(range(len(data)), 25):
        (tmp_path / "cut").write_bytes(data[:at])
        some = list(told_of(read(tmp_path / "cut")))
        assert some == told[: len(some)]
        lengths.add(len(some))
    assert len(lengths) > 2
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    (tmp_path / "cut").write_bytes(damaged)
    some = list(told_of(read(tmp_path / "cut")))
    assert some == told[: len(some)]
    assert 0 < len(some) < len(told)


def test_a_full_journal_keeps_the_newest_and_counts_what_it_dropped(tmp_path: Path) -> None:
    told = write(tmp_path / "n", 20 * BLOCK_EVENTS, keep=4 * BLOCK_EVENTS)
    dropped, *entries = read(tmp_path / "n")
    assert dropped.event == "dropped"
    count = dropped.detail["count"]
    assert 2 * BLOCK_EVENTS <= len(entries) <= 5 * BLOCK_EVENTS
    assert list(told_of(entries)) == told[count:]
    assert [entry.index for entry in (dropped, *entries)] == list(range(count - 1, len(told)))
    before = [place for event, place in told[:count] if event == "sent"]
    assert dropped.detail["sent"] == {dst: max(number for to, number in before if to == dst) for dst in ("A", "B")}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5 * BLOCK_EVENTS * 100


def test_large_values_are_kept_as_their_size(tmp_path: Path) -> None:
    journal = FileJournal(JournalSpec(str(tmp_path / "n"), 10**6), ["A", "C"], ["A", "B"], pytest.fail)
    send = journal.sending(lambda dst, number, payload: None)
    payloads: list[object] = ["x" * 5000, "y", ("z" * 5000,), b"v" * 5000]
    payloads += [freeze(value, Codec()) for value in (["w" * 5000], {"w": "w" * 5000}, [["w" * 5000]])]
    for number, payload in enumerate(payloads, 1):
        send("A", number, payload)
    journal.note("recorded", **{"snapshot": "0-N-1", "from": None, "state": Encoded(b"\xa1x" * 40000)})
    journal.close()
    entries = read(tmp_path / "n")
    shown = [entry.detail["payload"] for entry in entries[:-1]]
    assert shown[1] == "y"
    assert [list(value) == ["$size"] and value["$size"] >= 5000 for value in (*shown[:1], *shown[2:])] == [True] * 6
    assert entries[-1].detail["state"] == {"$size": 80000}
    assert (tmp_path / "n").stat().st_size < 6000


def test_a_restored_nodes_journal_counts_on(tmp_path: Path) -> None:
    path = str(tmp_path / "n")
    journal = FileJournal(JournalSpec(path, 10**6), ["A", "C"], ["A", "B"], pytest.fail)
    journal.restored({"A": 0, "B": 4}, {"A": 6, "C": 0})
    journal.sent("B", 5, "x")
    journal.received("A")
    journal.received("C")
    journal.close()
    head = Head(
        "processes", "seconds", "app", "by hand", ("A", "B", "C", "N"), (("N", "A"), ("N", "B"), ("A", "N"), ("C", "N"))
    )
    entries = read_part(path, "N", head, Codec(), 0.0)
    assert [(entry.event, entry.detail["number"]) for entry in entries] == [
        ("sent", 5),
        ("received", 7),
        ("received", 1),
    ]


def test_a_full_disk_ends_the_journal_and_nothing_else() -> None:
    """Without a disk of our own to fill: this file is always full."""
    complaints: list[str] = []
    journal = FileJournal(JournalSpec("/dev/full", 10**6), ["A"], ["B"], complaints.append)
    send = journal.sending(lambda dst, number, payload: None)
    for number in range(1, 3 * BLOCK_EVENTS):
        send("B", number, number)
    journal.flush()
    assert complaints == ["the event log of this node ends here: No space left on device"]
    # Nothing is kept for a file that is not there, and nothing is due, or the node would wake up for it for ever.
    send("B", 3 * BLOCK_EVENTS + 1, 0)
    due = journal.due
    assert due is not None
    journal.turn(due + 1)
    assert journal.due is None
    journal.close()


def test_two_runs_do_not_share_a_log(tmp_path: Path) -> None:
    one = RunLog(str(tmp_path / "x.log"), HEAD, 1000)
    try:
        with pytest.raises(InputError, match="another run writes this log"):
            RunLog(str(tmp_path / "x.log"), HEAD, 1000)
        assert (tmp_path / "x.log.parts").is_dir()
    finally:
        one.close()
    RunLog(str(tmp_path / "x.log"), HEAD, 1000).close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.log"]


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.log.parts").mkdir()
    (tmp_path / "x.log.parts" / "thesis.tex").write_text("years of work")
    (tmp_path / "x.log").write_text("a log of before\n")
    with pytest.raises(InputError, match="something else in the folder"):
        RunLog(str(tmp_path / "x.log"), HEAD, 1000)
    assert (tmp_path / "x.log.parts" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "x.log").read_text() == "a log of before\n"


def test_a_small_limit_is_kept_too(tmp_path: Path) -> None:
    write(tmp_path / "n", 20_000, keep=250)
    dropped, *entries = read(tmp_path / "n")
    assert dropped.detail["count"] == 20_000 - len(entries)
    assert 100 <= len(entries) <= 600
