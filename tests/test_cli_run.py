"""`mpsnap run` from the outside: what stands in its document, its tables and its files, and that all of it is true.

Nothing here trusts the command: the proof that a cut is consistent is worked out again from the JSON alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cli_harness import COMMAND, ENVIRONMENT, QUICK, Done, end, leaves_nothing, mpsnap, run, under_way, write
from conftest import wait_until

pytestmark = pytest.mark.processes

Document = dict[str, Any]


def proven(document: Document, nodes: list[str], channels: list[tuple[str, str]]) -> int:
    """Prove every cut of a document from its fields alone, and return how many messages were in flight in all."""
    in_flight = 0
    for snapshot in document["snapshots"]:
        assert snapshot["verified"] is True
        assert list(snapshot["nodes"]) == nodes
        assert [(channel["src"], channel["dst"]) for channel in snapshot["channels"]] == channels
        for name, node in snapshot["nodes"].items():
            assert list(node["sent"]) == [dst for src, dst in channels if src == name]
            assert sorted(node["received"]) == sorted(src for src, dst in channels if dst == name)
        for channel in snapshot["channels"]:
            src, dst, messages = channel["src"], channel["dst"], channel["messages"]
            sent, received = snapshot["nodes"][src]["sent"][dst], snapshot["nodes"][dst]["received"][src]
            assert 0 <= received <= sent
            assert len(messages) == sent - received
            in_flight += len(messages)
    return in_flight


def tokens_in(snapshot: Document) -> int:
    """Count the tokens at the nodes and in the channels."""
    held: int = sum(node["state"]["tokens"] for node in snapshot["nodes"].values())
    return held + sum(sum(channel["messages"]) for channel in snapshot["channels"])


# --- The document. ---


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_the_document_has_every_field_and_proves_itself(tmp_path: Path, start_method: str) -> None:
    arguments = ("--topology", "complete:4", "--snapshots", "40", "--concurrent", "3", "--seed", "5")
    done = mpsnap("run", *arguments, "--start-method", start_method, "--format", "json", cwd=tmp_path)
    document = done.document
    assert document.keys() >= {"run", "snapshots", "outputs", "error"}
    facts = document["run"]
    assert facts.items() >= {
        ("app", "tokens"),
        ("topology", "complete:4"),
        ("nodes", 4),
        ("channels", 12),
        ("start_method", start_method),
        ("seed", 5),
    }
    assert 0 < facts["duration_s"] < 60
    assert facts["messages_sent"] >= facts["messages_received"] > 0
    assert document["outputs"] == []
    assert document["error"] is None

    nodes = ["N1", "N2", "N3", "N4"]
    channels = [(src, dst) for src in nodes for dst in nodes if src != dst]
    assert len(document["snapshots"]) == 40
    for number, snapshot in enumerate(document["snapshots"]):
        assert snapshot["number"] == number
        assert snapshot["initiators"] == [nodes[number % 4]], "all nodes in turn"
        assert re.fullmatch(r"0-N\d-\d+", snapshot["id"])
        assert 0 < snapshot["duration_s"] < 60
        for node in snapshot["nodes"].values():
            assert node.keys() >= {"state", "sent", "received"}
        for channel in snapshot["channels"]:
            assert channel.keys() >= {"src", "dst", "messages"}
        assert tokens_in(snapshot) == 40
    assert len({snapshot["id"] for snapshot in document["snapshots"]}) == 40
    assert proven(document, nodes, channels) > 40, "cuts through traffic, not through silence"
    last = document["snapshots"][-1]["nodes"].values()
    assert sum(sum(node["sent"].values()) for node in last) <= facts["messages_sent"]
    assert sum(sum(node["received"].values()) for node in last) <= facts["messages_received"]


def test_initiators_are_taken_as_given_and_in_turn(tmp_path: Path) -> None:
    """Several names begin one snapshot together; whom they cannot reach is helped by one more."""
    given = ("--initiator", "N1,N3", "--initiator", "N2", "--initiator", "N2,N2")
    document = mpsnap(
        "run", "--topology", "ring:3", "--snapshots", "5", *given, "--format", "json", *QUICK, cwd=tmp_path
    ).document
    assert [snapshot["initiators"] for snapshot in document["snapshots"]] == [
        ["N1", "N3"],
        ["N2"],
        ["N2"],
        ["N1", "N3"],
        ["N2"],
    ]
    document = mpsnap(
        "run", "--topology", "line:3", "--snapshots", "2", "--initiator", "N3", "--format", "json", *QUICK, cwd=tmp_path
    ).document
    assert [snapshot["initiators"] for snapshot in document["snapshots"]] == [["N3", "N1"]] * 2
    assert proven(document, ["N1", "N2", "N3"], [("N1", "N2"), ("N2", "N3")]) >= 0


def test_snapshots_come_at_their_times_until_the_time_is_over(tmp_path: Path) -> None:
    document = mpsnap("run", "--snapshot-every", "0.1", "--duration", "0.55", "--format", "json", cwd=tmp_path).document
    assert 1 <= len(document["snapshots"]) <= 5
    assert 0.55 <= document["run"]["duration_s"] < 20
    sent = [sum(sum(n["sent"].values()) for n in s["nodes"].values()) for s in document["snapshots"]]
    assert sent == sorted(sent), "each later than the one before"


def test_a_number_of_snapshots_ends_a_run_that_has_time_left(tmp_path: Path) -> None:
    arguments = ("--snapshot-every", "0.05", "--snapshots", "2", "--duration", "50", *QUICK)
    document = mpsnap("run", *arguments, "--format", "json", cwd=tmp_path).document
    assert [snapshot["number"] for snapshot in document["snapshots"]] == [0, 1]
    assert document["run"]["duration_s"] < 25


def test_parameters_reach_the_nodes(tmp_path: Path) -> None:
    document = mpsnap(
        *("run", "--topology", "ring:4", "--param", "tokens=64", "--snapshots", "3", "--format", "json"), cwd=tmp_path
    ).document
    assert [tokens_in(snapshot) for snapshot in document["snapshots"]] == [256] * 3


PARAMETERS = """
    from mpsnap import Node
    class Params(Node):
        def setup(self, ctx, tokens=None, **params):
            self.params = params
            self.tokens = tokens
    """


def test_parameters_are_json_else_text(tmp_path: Path) -> None:
    """A parameter `tokens` in a class that is not ours may be anything; a topology's tokens come by that name."""
    write(tmp_path / "app.py", PARAMETERS)
    given = ["a=1", "b=[1,2.5,null]", "c=word", 'd={"e":"f"}', "e=", "f=true", "f=false", "g=a=b", "h=[1", "i=äöü"]
    arguments = [*QUICK, *(argument for text in given for argument in ("--param", text))]
    document = mpsnap(
        *("run", "app.py:Params", "--topology", "ring:2", "--snapshots", "1", "--format", "json"),
        *arguments,
        cwd=tmp_path,
    ).document
    state = document["snapshots"][0]["nodes"]["N2"]["state"]
    expected = {"a": 1, "b": [1, 2.5, None], "c": "word", "d": {"e": "f"}, "e": "", "f": False, "g": "a=b", "h": "[1"}
    assert state == {"params": {**expected, "i": "äöü"}, "tokens": 10}
    document = mpsnap(
        *("run", "app.py:Params", "--topology", "ring:2", "--snapshots", "1", "--format", "json"),
        *("--param", "tokens=few", *QUICK),
        cwd=tmp_path,
    ).document
    assert document["snapshots"][0]["nodes"]["N1"]["state"]["tokens"] == "few"


def test_a_seed_decides_what_nodes_draw(tmp_path: Path) -> None:
    """Not in which order processes run; so what is compared is drawn before the first message."""
    write(
        tmp_path / "app.py",
        """
        from mpsnap import Node
        class Draws(Node):
            def setup(self, ctx):
                self.drawn = [ctx.random.randrange(10**6) for _ in range(5)]
        """,
    )

    def drawn(*seed: str) -> dict[str, Any]:
        document = mpsnap(
            *("run", "app.py:Draws", "--topology", "ring:2", "--snapshots", "1", "--format", "json"),
            *seed,
            cwd=tmp_path,
        ).document
        return {name: node["state"]["drawn"] for name, node in document["snapshots"][0]["nodes"].items()}

    first = drawn("--seed", "7", *QUICK)
    assert first == drawn("--seed", "7")
    assert first["N1"] != first["N2"]
    assert first != drawn("--seed", "8", *QUICK)
    assert drawn("--seed", "0", *QUICK) == drawn(*QUICK)


# --- Invariants. ---

INVARIANTS = """
    def yes(snapshot):
        return all(node.state["tokens"] >= 0 for node in snapshot.nodes.values())
    def early(snapshot):
        return snapshot.number < 2
    def raises(snapshot):
        raise LookupError("nothing\\x1b[2J here")
    def leaves(snapshot):
        raise SystemExit(0)
    """


@pytest.mark.parametrize(
    ("names", "status", "snapshots", "error"),
    [
        (["yes", "yes"], 0, 4, None),
        (["early"], 1, 3, r"invariant \S*laws.py:early is false on snapshot 2 \(0-N3-1\)"),
        (
            ["yes", "raises"],
            1,
            1,
            r"invariant \S*laws.py:raises raised on snapshot 0 .*: LookupError: .*\\x1b\[2J here",
        ),
        (["leaves"], 1, 1, r"invariant \S*laws.py:leaves raised on snapshot 0 .*sys.exit\(0\)"),
    ],
)
def test_an_invariant_that_does_not_hold_ends_the_run(
    tmp_path: Path, names: list[str], status: int, snapshots: int, error: str | None
) -> None:
    """Exit 1, the cut and the function named; the cut itself is in the document, for whoever wants to know why."""
    write(tmp_path / "laws.py", INVARIANTS)
    options = [option for name in names for option in ("--invariant", f"laws.py:{name}")]
    done = mpsnap("run", "--snapshots", "4", *options, "--format", "json", *QUICK, cwd=tmp_path, status=status)
    document = done.document
    assert len(document["snapshots"]) == snapshots
    if error is None:
        assert document["error"] is None
    else:
        assert re.search(error, done.error)
        assert document["error"]["what"] in done.error
        assert done.stderr.isascii()
        assert "\x1b" not in done.stderr


def test_an_invariant_of_the_library_and_one_of_a_module_hold(tmp_path: Path) -> None:
    write(tmp_path / "laws.py", INVARIANTS)
    both = ("--invariant", "mpsnap.apps.tokens:conserved", "--invariant", "laws:yes", *QUICK)
    assert mpsnap("run", "--snapshots", "3", *both, "--quiet", cwd=tmp_path).stderr == ""


# --- Files. ---


def test_snap_files_hold_what_the_format_says(tmp_path: Path) -> None:
    arguments = ("run", "--topology", "star:12", "--snapshots", "3", "--format", "snap", *QUICK)
    done = mpsnap(*arguments, "--out", "a/b", cwd=tmp_path)
    assert done.stdout == ""
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["0.snap", "1.snap", "2.snap"]
    texts = [(tmp_path / "a" / "b" / f"{number}.snap").read_text() for number in range(3)]
    texts += mpsnap(*arguments, cwd=tmp_path).stdout.removesuffix("\n").split("\n\n")
    assert len(texts) == 6
    for number, text in enumerate(texts):
        first, *lines = text.splitlines()
        assert first == str(number % 3)
        nodes, messages = lines[:12], lines[12:]
        assert nodes == sorted(nodes, key=lambda line: line.split()[0])
        assert [node.split()[0] for node in nodes[:3]] == ["N1", "N10", "N11"], "sorted as text"
        matches = [re.fullmatch(r"(\S+) (\S+) token\((\d+)\)", line) for line in messages]
        channels = [match.group(1, 2) for match in matches if match]
        assert len(channels) == len(messages)
        assert channels == sorted(channels)
        assert sum(int(node.split()[1]) for node in nodes) + sum(int(m[3]) for m in matches if m) == 120


def test_each_snapshot_is_a_file_in_the_form_of_the_output(tmp_path: Path) -> None:
    document = mpsnap("run", "--snapshots", "3", "--format", "json", "--out", "out", *QUICK, cwd=tmp_path).document
    for number in range(3):
        assert json.loads((tmp_path / "out" / f"{number}.json").read_text()) == document["snapshots"][number]
    table = mpsnap("run", "--snapshots", "3", "--out", "out", *QUICK, cwd=tmp_path).stdout
    for number in range(3):
        text = (tmp_path / "out" / f"{number}.txt").read_text()
        assert text.startswith(f"Snapshot {number} from N{number + 1} in ")
        assert text in table
    assert len(list((tmp_path / "out").iterdir())) == 6, "one form beside the other"


EMITS = """
    from mpsnap import Node
    class Emits(Node):
        endless = False
        default_topology = "ring:2"
        def setup(self, ctx, records=3):
            self.left = records
            ctx.emit({"begin": (1, 2)})
        def on_idle(self, ctx):
            if self.left:
                self.left -= 1
                ctx.emit(self.left)
                return True
        def on_stop(self, ctx):
            ctx.emit("the end")
    """


def test_records_are_kept_as_json_lines(tmp_path: Path) -> None:
    write(tmp_path / "app.py", EMITS)
    done = mpsnap("run", "app.py:Emits", "--emit", "records.jsonl", "--format", "json", cwd=tmp_path)
    outputs = done.document["outputs"]
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == outputs
    for name in ("N1", "N2"):
        records = [(output["n"], output["record"]) for output in outputs if output["node"] == name]
        assert records == list(zip(count(), [{"begin": {"$tuple": [1, 2]}}, 2, 1, 0, "the end"], strict=False))
    table = mpsnap("run", "app.py:Emits", "--emit", "records.jsonl", *QUICK, cwd=tmp_path).stdout
    assert "record" not in table, "what went to the file is not shown as well"


def test_many_records_are_shown_in_part(tmp_path: Path) -> None:
    write(tmp_path / "app.py", EMITS)
    table = mpsnap("run", "app.py:Emits", "--param", "records=50", *QUICK, cwd=tmp_path).stdout
    assert len(re.findall(r"^N[12] +\d+  ", table, re.MULTILINE)) == 20
    assert "and 84 more records; --emit FILE keeps them all" in table


# --- Apps of one's own. ---

VALUES = """
    from collections import Counter
    from dataclasses import dataclass
    from enum import Enum
    from mpsnap import Node

    class Colour(Enum):
        RED = 1

    @dataclass
    class Point:
        x: int
        colour: Colour

    print("imported")

    class Values(Node):
        endless = False
        default_topology = "ring:2"
        def setup(self, ctx):
            print("in setup", flush=True)
            self.colour = Colour.RED
            self.point = Point(1, Colour.RED)
            self.pair = (1, [2])
            self.letters = {"b", "a"}
            self.raw = b"\\x00\\xff"
            self.by_number = {1: "one"}
            self.nothing = float("nan")
            self.counts = Counter("aab")
            self.left = 1
        def on_idle(self, ctx):
            if self.left:
                self.left -= 1
                ctx.send(ctx.outbound[0], Point(2, Colour.RED))
        def on_message(self, ctx, sender, payload):
            print("in on_message", payload)
            import os
            os.write(1, b"written past print\\n")
            ctx.emit(payload)
        def on_stop(self, ctx):
            print('{"run": "a document"}')
    """


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_prints_of_the_nodes_leave_the_document_whole_and_states_keep_their_types(
    tmp_path: Path, start_method: str
) -> None:
    write(tmp_path / "sub" / "mine.py", VALUES)
    done = mpsnap(
        "run", "sub/mine.py:Values", "--format", "json", "--quiet", "--start-method", start_method, cwd=tmp_path
    )
    (snapshot,) = done.document["snapshots"]
    colour = {"$type": "mine:Colour", "value": "RED"}
    for node in snapshot["nodes"].values():
        assert node["state"] == {
            "colour": colour,
            "point": {"$type": "mine:Point", "value": {"x": 1, "colour": colour}},
            "pair": {"$tuple": [1, [2]]},
            "letters": {"$set": ["a", "b"]},
            "raw": {"$bytes": "AP8="},
            "by_number": {"$map": [[1, "one"]]},
            "nothing": {"$float": "nan"},
            "counts": {"$type": "Counter", "value": {"a": 2, "b": 1}},
            "left": 0,
        }
    record = {"$type": "mine:Point", "value": {"x": 2, "colour": colour}}
    assert [output["record"] for output in done.document["outputs"]] == [record, record]
    for text, times in (("in setup", 2), ("in on_message", 2), ("written past print", 2), ("a document", 2)):
        assert done.stderr.count(text) == times


def test_what_a_module_prints_on_import_leaves_the_document_whole(tmp_path: Path) -> None:
    """The command imports it as well as the nodes do, and stdout is the command's own."""
    write(tmp_path / "mine.py", VALUES)
    done = mpsnap("run", "mine.py:Values", "--format", "json", cwd=tmp_path)
    assert done.document["error"] is None
    assert "imported" in done.stderr


MAPPING = """
    from mpsnap import Node, Topology
    from neighbour import ROUNDS

    class Head(Node):
        endless = False
        def setup(self, ctx, start=0):
            self.left = ROUNDS
        def on_idle(self, ctx):
            if self.left:
                self.left -= 1
                ctx.send("tail-1", self.left)
                return True

    class Tail(Node):
        endless = False
        def setup(self, ctx, factor):
            self.seen, self.factor = [], factor
        def on_message(self, ctx, sender, payload):
            self.seen.append(payload * self.factor)

    nodes = {"head": Head, "tail-*": (Tail, {"factor": 2})}
    default_topology = Topology(["head", "tail-1", "tail-2"], [("head", "tail-1"), ("tail-1", "tail-2")], name="mine")
    """


@pytest.mark.parametrize("app", ["mapped", "mapped.py", "./mapped.py:nodes", "mapped:nodes"])
def test_a_module_may_say_what_runs_where(tmp_path: Path, app: str) -> None:
    """By path or by name; it ends by itself, and only the cut that proves so is listed."""
    write(tmp_path / "mapped.py", MAPPING)
    write(tmp_path / "neighbour.py", "ROUNDS = 4")
    document = mpsnap("run", app, "--format", "json", "--duration", "50", cwd=tmp_path).document
    assert document["run"]["app"] == app
    assert document["run"]["topology"] == "mine"
    (snapshot,) = document["snapshots"]
    assert snapshot["number"] == 0
    assert snapshot["nodes"]["tail-1"]["state"] == {"seen": [6, 4, 2, 0], "factor": 2}
    assert all(node["passive"] for node in snapshot["nodes"].values())
    assert not any(channel["messages"] for channel in snapshot["channels"])
    assert document["run"]["messages_sent"] == document["run"]["messages_received"] == 4


def test_a_program_that_ends_by_itself_but_not_in_time_is_not_done(tmp_path: Path) -> None:
    """Half a result must not pass for the whole: exit 3, with what there is."""
    write(
        tmp_path / "app.py",
        """
        from mpsnap import Node
        class Slow(Node):
            endless = False
            def on_idle(self, ctx):
                ctx.after(60, "on_idle")
        """,
    )
    limits = ("--topology", "ring:2", "--duration", "0.3", "--snapshot-every", "0.1", *QUICK)
    done = mpsnap("run", "app.py:Slow", *limits, "--format", "json", cwd=tmp_path, status=3)
    assert done.error.startswith("the time was over before a cut proved that the program had ended; try: ")
    assert 1 <= len(done.document["snapshots"]) <= 3
    assert not any(node["passive"] for node in done.document["snapshots"][-1]["nodes"].values())


def test_snapshots_that_nodes_begin_are_shown_too(tmp_path: Path) -> None:
    write(
        tmp_path / "app.py",
        """
        from mpsnap import Node
        class Begins(Node):
            def setup(self, ctx):
                self.id = None
            def on_idle(self, ctx):
                if ctx.name == "N2" and self.id is None:
                    self.id = ctx.snapshot()
        """,
    )
    document = mpsnap(
        *(
            "run",
            "app.py:Begins",
            "--topology",
            "ring:3",
            "--duration",
            "0.4",
            "--snapshot-every",
            "9",
            "--format",
            "json",
        ),
        cwd=tmp_path,
    ).document
    (snapshot,) = document["snapshots"]
    assert snapshot["initiators"] == ["N2"]
    assert snapshot["nodes"]["N2"]["state"]["id"] == snapshot["id"]


# --- Tables and streams. ---


def test_without_any_argument_it_shows_what_it_is_for(tmp_path: Path) -> None:
    """Five snapshots in five seconds as tables, the first of them soon, and a last line that sums up."""
    began = time.monotonic()
    with under_way("run", cwd=tmp_path) as started:
        assert started.stdout is not None
        lines = [started.stdout.readline() for _ in range(7)]
        first_table = time.monotonic() - began
        rest, narration = started.communicate(timeout=60)
    assert started.returncode == 0
    assert first_table < 10
    heading, header, rule, *nodes = lines
    assert re.fullmatch(
        r"Snapshot 0 from N1 in [\d.]+ ms: consistent, 4 nodes, .* in flight on .* 12 channels\n", heading
    )
    assert header.split() == ["node", "state", "sent", "received"]
    assert set(rule) == {"-", " ", "\n"}
    for number, line in enumerate(nodes, 1):
        assert re.fullmatch(rf"N{number}      {{'tokens': \d+}} +\d+ +\d+\n", line)
        assert len(line) == len(rule), "numbers end where their column does"
    assert re.findall(r"^Snapshot (\d)", "".join(lines) + rest, re.MULTILINE) == ["0", "1", "2", "3", "4"]
    assert re.search(r"^channel +in flight +messages, oldest first\n", rest, re.MULTILINE)
    assert re.search(r"^N\d -> N\d +\d+  \d+", rest, re.MULTILINE)
    summary = rest.splitlines()[-1]
    assert re.fullmatch(
        r"5 consistent snapshots, median [\d.]+ ms; \d+ messages sent and \d+ received in .* s", summary
    )
    assert re.fullmatch(
        r"mpsnap: tokens on complete:4: 4 processes, 12 channels, \w+ for 5 s; Ctrl-C stops it\n", narration
    )


def test_after_ten_tables_a_line_says_enough(tmp_path: Path) -> None:
    done = mpsnap("run", "--topology", "ring:2", "--snapshots", "13", "--quiet", *QUICK, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.count("node    state") == 10
    assert re.findall(r"^Snapshot (\d+) from N[12] in ", done.stdout, re.MULTILINE) == [str(n) for n in range(13)]


def test_a_reader_that_has_seen_enough_ends_the_run(tmp_path: Path) -> None:
    """No traceback of ours nor of Python's last flush, and nobody goes on for a reader that is gone."""
    command = f"{sys.executable} -m mpsnap run --start-method fork --snapshot-every 0.02 --duration 50 --format"
    for form, first in (("table", r"Snapshot 0 from N1 .*\n"), ("snap", r"0\n")):
        done = run(f"{command} {form} | head -n 1; echo ${{PIPESTATUS[0]}}", cwd=tmp_path)
        assert re.fullmatch(first + r"3\n", done.stdout)
        assert re.fullmatch(r"mpsnap: tokens on .*\n", done.stderr)
    short = f"{sys.executable} -m mpsnap run --snapshots 300 --quiet --format json"
    done = run(f"{short} | head -c 1; echo ${{PIPESTATUS[0]}}", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("{3\n", "")


def test_closed_streams_are_no_obstacle(tmp_path: Path) -> None:
    """The number of a closed one must not become that of a channel."""
    command = f"{sys.executable} -m mpsnap run --snapshots 2 --out out --start-method"
    for start_method in ("fork", "forkserver", "spawn"):
        done = run(f"{command} {start_method} >&- 2>&- <&-", cwd=tmp_path)
        assert done == Done(0, "", "")
        assert (tmp_path / "out" / "1.txt").read_text().startswith("Snapshot 1 from N2 in ")
        (tmp_path / "out" / "1.txt").unlink()


def test_what_the_terminal_has_no_character_for_is_shown_escaped(tmp_path: Path) -> None:
    write(tmp_path / "app.py", PARAMETERS)
    done = mpsnap(
        *("run", "app.py:Params", "--topology", "ring:2", "--snapshots", "1", "--param", "a=ä\x1b[2J", *QUICK),
        cwd=tmp_path,
        env={"PYTHONIOENCODING": "ascii"},
    )
    assert r"{'params': {'a': '\xe4\x1b[2J'}, 'tokens': 10}" in done.stdout


#: A run of the app that has no end of its own.
ENDLESS = ("run", "app.py:Emits", "--duration", "100", "--snapshot-every", "0.05", "--format", "json")


def begun(tmp_path: Path, *command: str, stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, with no input."""
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        env=ENVIRONMENT,
    )


def on_a_terminal(tmp_path: Path, *arguments: str) -> tuple[str, str]:
    """Run with stderr on a terminal and stdout in a file; return what either got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    path = tmp_path / "stdout"
    with open(path, "wb") as stdout:
        started = begun(tmp_path, *COMMAND, *arguments, stdout=stdout, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # the way a terminal ends whose other side is closed
    finally:
        os.close(ours)
        status = started.wait(timeout=60)
    leaves_nothing(started.pid)
    assert status == 0, shown
    return shown.decode(), path.read_text()


def test_a_run_whose_terminal_is_closed_ends_in_order(tmp_path: Path) -> None:
    """Exit 130 and a whole document in the file, although nothing can be written to stderr any more."""
    write(tmp_path / "app.py", EMITS.replace("endless = False", ""))
    ours, theirs = pty.openpty()
    with open(tmp_path / "stdout", "wb") as stdout:
        started = begun(tmp_path, *COMMAND, *ENDLESS, stdout=stdout, stderr=theirs)
    os.close(theirs)
    with started:
        try:
            shown = b""
            while b"Ctrl-C stops it" not in shown:
                shown += os.read(ours, 65536)
            os.killpg(started.pid, signal.SIGHUP)
            os.close(ours)
            assert started.wait(timeout=30) == 130
        finally:
            end(started)
    leaves_nothing(started.pid)
    document = json.loads((tmp_path / "stdout").read_text())
    assert document["error"] is None
    assert [output["record"] for output in document["outputs"]].count("the end") == 2


def test_a_run_that_is_to_outlive_its_terminal_does(tmp_path: Path) -> None:
    """As `nohup` starts it: the signal is ignored by whoever begins it and by all of it, and the run takes its time."""
    write(tmp_path / "app.py", EMITS.replace("endless = False", ""))
    err = tmp_path / "err"
    arguments = ["3" if argument == "100" else argument for argument in ENDLESS]
    with open(err, "w") as stderr:
        started = begun(tmp_path, "nohup", *COMMAND, *arguments, stdout=subprocess.PIPE, stderr=stderr)
    with started:
        try:
            wait_until(lambda: "Ctrl-C stops it" in err.read_text(), "the start", 60)
            os.killpg(started.pid, signal.SIGHUP)
            stdout, _ = started.communicate(timeout=30)
        finally:
            end(started)
    assert started.returncode == 0
    assert json.loads(stdout)["error"] is None


def test_a_bar_moves_on_a_terminal_and_nowhere_else(tmp_path: Path) -> None:
    counted = ("run", *QUICK, "--snapshots", "30", "--snapshot-every", "0.02", "--format", "json")
    shown, stdout = on_a_terminal(tmp_path, *counted)
    assert re.search(r"\r +\d+%\|.*\| \d+ of 30 snapshots, ", shown)
    assert len(json.loads(stdout)["snapshots"]) == 30
    timed = ("run", *QUICK, "--duration", "0.4", "--snapshot-every", "0.1")
    shown, stdout = on_a_terminal(tmp_path, *timed)
    assert re.search(r"\r\d snapshots, 00:00 of 0.4 s", shown)
    assert shown.endswith("\r"), "the bar is cleared away at the end"
    assert "\r" not in stdout
    assert stdout.startswith("Snapshot 0 from N1 in ")
    shown, stdout = on_a_terminal(tmp_path, *timed, "--quiet")
    assert shown == ""
    assert stdout.startswith("Snapshot 0 from N1 in ")
    assert "\r" not in mpsnap(*timed, cwd=tmp_path).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("to_all", [True, False])
def test_a_signal_ends_the_run_in_order(tmp_path: Path, number: signal.Signals, to_all: bool) -> None:
    """Exit 130 and a whole document; that it ended is no error, nor that a SIGTERM to all ends the nodes too."""
    write(tmp_path / "app.py", EMITS.replace("endless = False", ""))
    err = tmp_path / "err"
    with open(err, "w") as stderr:
        started = begun(tmp_path, *COMMAND, *ENDLESS, stdout=subprocess.PIPE, stderr=stderr)
    with started:
        try:
            wait_until(lambda: "Ctrl-C stops it" in err.read_text(), "the start", 60)
            if to_all:
                os.killpg(started.pid, number)
            else:
                started.send_signal(number)
            stdout, _ = started.communicate(timeout=30)
        finally:
            end(started)
    assert started.returncode == 130
    leaves_nothing(started.pid)
    document = json.loads(stdout)
    assert document["error"] is None
    assert err.read_text().count("\n") == 1
    if not (to_all and number == signal.SIGTERM):
        assert [output["record"] for output in document["outputs"]].count("the end") == 2, "nodes could take leave"
