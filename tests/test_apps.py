"""The example apps do what they say, on processes, with their laws checked on every cut."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cli_harness import QUICK, cut, mpsnap

from mpsnap.apps.bank import ACCOUNTS, audit
from mpsnap.apps.tokens import conserved
from mpsnap.core.forms import parse_topology
from mpsnap.core.topology import Topology

PAIR = Topology(["A", "B"], [("A", "B"), ("B", "A")], {"A": 3, "B": 4})


# --- Tokens. ---


@pytest.mark.parametrize(("held", "moving", "law"), [(2, [1, 2], True), (2, [1], False), (3, [1, 2], False)])
def test_conserved_counts_nodes_and_channels(held: int, moving: list[int], law: bool) -> None:
    snapshot = cut(PAIR, {"A": {"tokens": held}, "B": {"tokens": 2}}, {("A", "B"): moving})
    assert conserved(snapshot) is law


@pytest.mark.processes
@pytest.mark.parametrize("topology", ["star:5", "grid:2x3", "line:3", "ring:1"])
def test_tokens_are_conserved_wherever_they_move(tmp_path: Path, topology: str) -> None:
    """Also where they can only drain to one end, and where there is no channel at all."""
    laws = ("--invariant", "mpsnap.apps.tokens:conserved", *QUICK)
    document = mpsnap(
        "run", "tokens", "--topology", topology, "--snapshots", "20", *laws, "--format", "json", cwd=tmp_path
    ).document
    total = 10 * document["run"]["nodes"]
    for snapshot in document["snapshots"]:
        held = [node["state"]["tokens"] for node in snapshot["nodes"].values()]
        moving = [amount for channel in snapshot["channels"] for amount in channel["messages"]]
        assert sum(held) + sum(moving) == total
        assert all(amount > 0 for amount in moving)
        assert all(amount >= 0 for amount in held)


# --- Bank. ---


@pytest.mark.processes
def test_an_audit_finds_all_money_in_every_cut(tmp_path: Path) -> None:
    law = ("--invariant", "mpsnap.apps.bank:audit", "--param", "balance=7", *QUICK)
    document = mpsnap(
        *("run", "bank", "--topology", "complete:5", "--snapshots", "20", "--concurrent", "4", "--format", "json"),
        *law,
        cwd=tmp_path,
    ).document
    assert len(document["snapshots"]) == 20
    for snapshot in document["snapshots"]:
        at_rest = sum(sum(node["state"]["accounts"]) for node in snapshot["nodes"].values())
        moving = sum(transfer["amount"] for channel in snapshot["channels"] for transfer in channel["messages"])
        assert at_rest + moving == 5 * ACCOUNTS * 7
    assert any(channel["messages"] for snapshot in document["snapshots"] for channel in snapshot["channels"])


@pytest.mark.parametrize(
    ("accounts", "moving", "passes"),
    [
        ([10, 10, 10, 10, 10], [], True),
        ([0, 0, 0, 0, 0], [20, 30], True),
        ([10, 10, 10, 10, 10], [1], False),
        ([10, 10, 10, 10, 9], [], False),
        ([-1, 11, 10, 10, 20], [], False),
        ([0, 0, 0, 0, 0], [20, 29], False),
    ],
)
def test_an_audit_fails_when_money_was_made_lost_or_overdrawn(
    accounts: list[int], moving: list[int], passes: bool
) -> None:
    states = {
        "A": {"accounts": accounts, "transfers": len(moving), "opening_balance": 10},
        "B": {"accounts": [10] * ACCOUNTS, "transfers": 0, "opening_balance": 10},
    }
    assert audit(cut(PAIR, states, {("A", "B"): [{"to": 0, "amount": amount} for amount in moving]})) is passes


# --- Ping-pong. ---


@pytest.mark.processes
@pytest.mark.parametrize(
    ("topology", "measuring"), [("ring:2", ["N1"]), ("biring:3", ["N1", "N2"]), ("line:2", []), ("names.top", ["left"])]
)
def test_each_pair_of_neighbours_is_measured_by_one_of_them(
    tmp_path: Path, topology: str, measuring: list[str]
) -> None:
    """Whatever they are called; where nobody can answer there is nothing to measure."""
    (tmp_path / "names.top").write_text("2\nright 0\nleft 0\nleft right\nright left\n")
    outputs = mpsnap(
        "run", "pingpong", "--topology", topology, "--duration", "0.3", "--format", "json", *QUICK, cwd=tmp_path
    ).document["outputs"]
    assert sorted(output["node"] for output in outputs) == measuring
    for output in outputs:
        assert output["n"] == 0
        assert output["record"].keys() == {"round_trips", "mean_us"}
        assert output["record"]["round_trips"] >= 1
        assert 0 < output["record"]["mean_us"] < 300_000


# --- Word count. ---

VOCABULARY = [
    *(f"word{k}" for k in range(3000)),
    *(
        "Ärger",
        "ärger",
        "ÄRGER",
        "straße",
        "STRASSE",
        "naïve",
        "cafe\u0301",
        "İstanbul",
        "ΟΔΟΣ",
        "ΟΔΟΣ.",
        "ς",
        "日本語",
    ),
    *("don't", "x_1", "__init__", "3.14", "٣٤", "²", "ﬁne", "a\u200bb", "\ufeffbom", "🙂", "e-mail", "(", "--", "\x85"),
]


def text_of(lines: int, end: str, seed: int) -> str:
    """Make a text of some words a line, some lines empty."""
    rng = random.Random(seed)
    return "".join(" ".join(rng.choices(VOCABULARY, k=rng.randrange(20))) + end for _ in range(lines))


def counted(tmp_path: Path, files: list[str]) -> tuple[Counter[str], Any]:
    done = mpsnap(
        "run", "wordcount", "--param", f"files={','.join(files)}", "--format", "json", "--emit", "w", cwd=tmp_path
    )
    counts = Counter[str]()
    for output in done.document["outputs"]:
        assert output["record"]["word"] not in counts, "each word is counted in one place"
        counts[output["record"]["word"]] = output["record"]["count"]
    return counts, done.document


@pytest.mark.processes
def test_words_of_many_files_are_counted_as_one_process_would(tmp_path: Path) -> None:
    """Unix and Windows lines, no end of the last line, an empty file, one long line: about a megabyte in all."""
    texts = {
        "unix.txt": text_of(6000, "\n", 1),
        "windows.txt": text_of(4000, "\r\n", 2),
        "old.txt": text_of(300, "\r", 3),
        "empty.txt": "",
        "open.txt": text_of(70, "\n", 4) + "the last line",
        "long.txt": text_of(3000, " ", 5),
        "one.txt": "one",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    assert sum((tmp_path / name).stat().st_size for name in texts) > 900_000
    counts, document = counted(tmp_path, list(texts))
    expected = Counter(word for text in texts.values() for word in re.findall(r"\w+", text.lower()))
    assert counts == expected
    assert len(expected) > 3000
    (snapshot,) = document["snapshots"]
    assert not any(channel["messages"] for channel in snapshot["channels"])
    assert document["run"]["messages_sent"] == document["run"]["messages_received"]
    assert len((tmp_path / "w").read_text().splitlines()) == len(expected)


@pytest.mark.processes
def test_a_file_without_words_has_no_counts(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("... !\n")
    counts, document = counted(tmp_path, ["none.txt"])
    assert not counts
    assert len(document["snapshots"]) == 1


@pytest.mark.processes
@pytest.mark.parametrize(
    ("files", "phase", "reason"),
    [
        ("missing.txt", "on_start", "No such file or directory: 'missing.txt'"),
        ("good.txt,missing.txt", "on_idle", "No such file or directory: 'missing.txt'"),
        ("good.txt,latin.txt", "on_idle", "latin.txt is not UTF-8 text"),
        ("folder", "on_start", "Is a directory: 'folder'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, files: str, phase: str, reason: str) -> None:
    (tmp_path / "good.txt").write_text("good\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4rger\n")
    (tmp_path / "folder").mkdir()
    done = mpsnap("run", "wordcount", "--param", f"files={files}", "--quiet", *QUICK, cwd=tmp_path, status=3)
    assert done.stderr.count("\n") == 1
    assert f"reader failed in {phase}: " in done.error
    assert reason in done.error


def test_apps_name_topologies_that_are_right_for_them() -> None:
    from mpsnap.cli.apps import APPS, find_app, find_topology

    for name in APPS:
        topology = find_topology(None, find_app(name))
        assert len(topology.nodes) >= 2
    assert find_topology(None, find_app("tokens")) == parse_topology("complete:4")
