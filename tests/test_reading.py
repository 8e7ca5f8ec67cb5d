"""Reading what was kept: `open_store`, and the verbs `list`, `show`, `diff`, `verify` and `prune`.

`pytest tests/test_reading.py --rewrite` writes the tables in `golden` anew; commit the difference only if it is meant.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_harness import COMMAND, ENVIRONMENT, PLAIN, cut, mpsnap, run
from keeping import MOMENT, RING, keep, kept, round_of, three
from said import Said, carried_out

from mpsnap import GlobalSnapshot, InputError, Opaque, Pickled, SnapshotCorrupt, StoreError, open_store
from mpsnap.cli import main
from mpsnap.cli.main import parser
from mpsnap.core.codec import Codec
from mpsnap.core.errors import ConsistencyError
from mpsnap.core.forms import parse_topology
from mpsnap.core.snapshot import Captured, Timer
from mpsnap.core.topology import Topology
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.manifest import MANIFEST, _render
from mpsnap.store.opening import StoredSnapshots
from mpsnap.views.document import snapshot_document

GOLDEN = Path(__file__).parent / "golden"


#: Runs one command in this process.
Command = Callable[..., Said]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Command]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()

    def execute(*arguments: str, status: int | None = 0) -> Said:
        said = carried_out(capsys, *arguments)
        assert status in (None, said.status), f"{arguments} -> {said.status}\n{said.stdout}\n{said.stderr}"
        if said.status == 0:
            assert said.stderr == ""
        return said

    yield execute
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    return kept(tmp_path / "kept", *three())


# --- From Python. ---


def test_a_store_is_opened_read_and_closed(ring: Path) -> None:
    with open_store(ring) as store:
        assert store.numbers() == (0, 1, 2)
        assert len(store) == 3
        assert [snapshot.number for snapshot in store] == [0, 1, 2]
        assert store[1].nodes["N2"].state == {"tokens": 8}
        assert store.load(1).channels["N1", "N2"] == (1, 2)
        assert store.latest().number == 2
        assert store.manifest(1).in_flight == store[1].in_flight == 3
        assert store.diff(1, 2) == three()[1].diff(three()[2])
        store.verify(0)
    store.close()


def test_what_was_loaded_stays_readable(tmp_path: Path) -> None:
    large = {"block": "x" * (1 << 20)}
    kept(tmp_path / "kept", round_of(0, dict.fromkeys(RING.nodes, large), {}, {}), *three()[1:])
    with open_store(tmp_path / "kept") as store:
        first = store[0]
    with DirectoryStore(tmp_path / "kept") as writer:
        writer.remove(0)
    assert first.stored
    assert first.nodes["N1"].state == large


def test_what_is_not_there_is_an_error(ring: Path, tmp_path: Path) -> None:
    with open_store(ring) as store:
        for number in (3, -1, 10**30):
            for ask in (store.load, store.manifest, store.verify, lambda number: store.diff(0, number)):
                with pytest.raises(StoreError, match="there is no snapshot"):
                    ask(number)
    with open_store(kept(tmp_path / "empty")) as store:
        assert list(store) == []
        with pytest.raises(StoreError, match="no snapshots"):
            store.latest()
    for path in (tmp_path, tmp_path / "none", ring / "LOCK", "a\0b", ""):
        with pytest.raises(InputError):
            open_store(path)
    (tmp_path / "link").symlink_to(ring)
    with pytest.raises(InputError, match="symbolic link"):
        open_store(tmp_path / "link")


def test_reading_leaves_a_store_as_it_is(ring: Path) -> None:
    def all_of() -> dict[str, object]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [ring, *ring.rglob("*")]}

    before = all_of()
    with open_store(ring) as store:
        for snapshot in store:
            snapshot_document(snapshot)
            store.verify(snapshot.number)
    for verb in (["list"], ["show"], ["diff", "0", "1"], ["verify"]):
        assert main([verb[0], str(ring), *verb[1:]]) == 0
    assert all_of() == before


# --- Tables, word for word, and documents. ---


def rich() -> list[GlobalSnapshot]:
    """Return two snapshots in which everything differs that can, with values that are long, deep and hostile."""
    topology = Topology(["hub", "leaf-1", "leaf-2"], [("hub", "leaf-1"), ("hub", "leaf-2"), ("leaf-1", "hub")])
    old = {
        "hub": {
            "log": ["a", "b", "c"],
            "seen": {3, 1},
            "by": {(1, "x"): 1, "two words": 2, "esc\x1b[2J": 0},
            "text": "x" * 200,
            "gone": None,
        },
        "leaf-1": {"numbers": list(range(20))},
        "leaf-2": ("a tuple",),
    }
    new = {
        "hub": {
            "log": ["a", "B\x1b[31m", "c", "d\nline"],
            "seen": {3, 2},
            "by": {(1, "x"): 1.0, "two words": 3, "esc\x1b[2J": 1},
            "text": "x" * 100 + "y" + "x" * 99,
            "new": {"deep": [1, {2: (3,)}]},
        },
        "leaf-1": {"numbers": list(range(1, 21))},
        "leaf-2": ["a list"],
    }
    first = cut(topology, old, {("hub", "leaf-1"): list(range(30)), ("leaf-1", "hub"): ["\x07"]}, duration=0.5)
    received = {("hub", "leaf-1"): 29, ("leaf-1", "hub"): 1}
    second = cut(
        topology,
        new,
        {("hub", "leaf-1"): [29, {"to": "x" * 50}], ("hub", "leaf-2"): [(1, 2)]},
        received=received,
        number=1,
        passive=["leaf-1"],
    )
    return [first, second]


TIMERS = {"hub": (Timer(0.25, 1.0, "tick", (1, "x")), Timer(3.5, None, "later", ()))}


@pytest.fixture
def rich_store(tmp_path: Path) -> Path:
    with DirectoryStore(tmp_path / "rich") as store:
        keep(store, rich()[0], timers=TIMERS)
        keep(store, rich()[1], program="shop:Node", recovery_point=False)
    return tmp_path / "rich"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("list", ["list", "rich"]),
        ("show", ["show", "rich", "0"]),
        ("show-full", ["show", "rich", "1", "--full"]),
        ("show-node", ["show", "rich", "0", "--node", "hub"]),
        ("show-channel", ["show", "rich", "0", "--channel", "hub:leaf-1"]),
        ("show-path", ["show", "rich", "--path", "log"]),
        ("show-value", ["show", "rich", "--node", "hub", "--path", "new"]),
        ("diff", ["diff", "rich", "0", "1"]),
        ("diff-full", ["diff", "rich", "0", "1", "--full"]),
        ("verify", ["verify", "rich"]),
    ],
)
def test_tables(
    request: pytest.FixtureRequest, command: Command, rich_store: Path, name: str, arguments: list[str]
) -> None:
    text = command(*arguments).stdout
    path = GOLDEN / f"reading-{name}.txt"
    if request.config.getoption("--rewrite", default=False):
        path.write_text(text)
    assert text == path.read_text()
    lines = text.splitlines()
    assert all(line.isprintable() and line == line.rstrip() for line in lines)
    if "--full" not in arguments and name != "show":
        # But for the line that says which snapshot it is; and what `run` shows has a width of its own.
        assert max(len(line) for line in lines if not line.startswith("Snapshot ")) <= 80


def test_the_document_of_a_snapshot_is_that_of_a_run(command: Command, ring: Path) -> None:
    for number, snapshot in enumerate(three()):
        document = command("show", "kept", str(number), "--format", "json").document
        assert document == {"snapshot": snapshot_document(snapshot)}
    assert command("show", "kept", "--format", "json").document["snapshot"]["number"] == 2


def test_the_documents_of_parts(command: Command, ring: Path) -> None:
    named = {"number": 1, "id": "0-N1-3"}
    state = {"state": {"tokens": 3}, "sent": {"N2": 6}, "received": {"N3": 6}, "passive": False, "finished": False}
    shown = [
        (["--node", "N1"], {"snapshot": named, "node": {"name": "N1", **state}}),
        (["--channel", "N1:N2"], {"snapshot": named, "channel": {"src": "N1", "dst": "N2", "messages": [1, 2]}}),
        (["--node", "N1", "--path", "tokens"], {"snapshot": named, "node": "N1", "path": "tokens", "value": 3}),
        (
            ["--channel", "N1->N2", "--path", "[1]"],
            {"snapshot": named, "src": "N1", "dst": "N2", "path": "[1]", "value": 2},
        ),
        (["--path", "tokens"], {"snapshot": named, "path": "tokens", "values": {"N1": 3, "N2": 8, "N3": 11}}),
    ]
    for arguments, document in shown:
        assert command("show", "kept", "1", *arguments, "--format", "json").document == document


def test_the_documents_of_stores(command: Command, ring: Path) -> None:
    listing = command("list", "kept", "--format", "json").document
    assert [entry["number"] for entry in listing["snapshots"]] == [0, 1, 2]
    assert listing["snapshots"][1] == {
        "number": 1,
        "id": "0-N1-3",
        "initiators": ["N1"],
        "wall_time": MOMENT + 60,
        "duration_s": 0.0021,
        "topology": "ring:3",
        "nodes": 3,
        "channels": 3,
        "in_flight": 3,
        "bytes": sum(path.stat().st_size for path in (ring / "snap-00000001").glob("node-*")),
        "verified": True,
        "recovery_point": True,
        "error": None,
    }
    verdicts = command("verify", "kept", "1", "--format", "json").document
    assert verdicts == {"verdicts": [{"number": 1, "ok": True, "error": None}]}
    assert command("prune", "kept", "--keep", "2", "--format", "json").document == {"removed": [0], "kept": [1, 2]}


def test_the_document_of_a_difference(command: Command, ring: Path, rich_store: Path) -> None:
    document = command("diff", "kept", "1", "2", "--format", "json").document["diff"]
    unchanged: dict[str, Any] = {"timers": [], "passive": None, "finished": None, "emitted": None}
    assert document["nodes"]["N1"] == {
        "state": [{"path": "tokens", "what": "changed", "old": 3, "new": 0}],
        "sent": {"N2": [6, 7]},
        "received": {"N3": [6, 9]},
        **unchanged,
    }
    assert document["nodes"]["N2"]["passive"] == [False, True]
    assert document["channels"][0] == {
        "src": "N1",
        "dst": "N2",
        "left": [{"number": 5, "message": 1}],
        "entered": [{"number": 7, "message": 3}],
        "changed": [],
    }
    assert document["only_in_old"] == document["only_in_new"] == {"nodes": [], "channels": []}
    assert (document["old"], document["new"]) == ({"number": 1, "id": "0-N1-3"}, {"number": 2, "id": "0-N1-5"})
    assert document["differ"] is True
    assert command("diff", "kept", "2", "latest", "--format", "json").document["diff"]["differ"] is False
    hub = command("diff", "rich", "0", "1", "--format", "json").document["diff"]["nodes"]["hub"]
    assert {"path": "seen{1}", "what": "removed", "old": 1} in hub["state"]
    assert {"path": "seen{2}", "what": "added", "new": 2} in hub["state"]
    assert hub["timers"][1] == {
        "method": "later",
        "args": {"$tuple": []},
        "period_s": None,
        "old_remaining_s": 3.5,
        "new_remaining_s": None,
    }


# --- What is asked for and not there: exit 2, one line. ---


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["list", "none"], ["none: there is no such directory"]),
        (["list", "."], ["this directory is not a store of snapshots", "mpsnap-store-1"]),
        (["list", ""], ["the path of a store is empty"]),
        (["list", "a\0b"], ["no path of a store"]),
        (["list", "kept/LOCK"], ["a store is a directory"]),
        (["list", "link"], ["no symbolic link"]),
        (["list", "empty"], ["empty: this store has no snapshots"]),
        (["show", "empty"], ["empty: this store has no snapshots"]),
        (["show", "empty", "0"], ["no snapshots"]),
        (["diff", "empty", "0", "1"], ["no snapshots"]),
        (["verify", "empty"], ["no snapshots"]),
        (["show", "kept", "7"], ["kept: there is no snapshot 7 in this store", "try: 2, 1, 0, or latest"]),
        (["verify", "kept", "7"], ["there is no snapshot 7"]),
        (["diff", "kept", "0", "7"], ["there is no snapshot 7"]),
        (["show", "kept", "-1"], ["must be a whole number >= 0, not '-1'"]),
        (["show", "kept", "../0"], ["must be a whole number", "'../0'"]),
        (["show", "kept", "9" * 5000], ["must be at most"]),
        (["show", "kept", "newest"], ["must be a whole number"]),
        (["show", "kept", "--node", "n1"], ["--node n1: there is no node 'n1' in snapshot 2", "try: N1"]),
        (["show", "kept", "--node", "../N1"], ["there is no node '../N1'"]),
        (["show", "kept", "--channel", "N2:N1"], ["there is no channel 'N2->N1'", "try: "]),
        (["show", "kept", "--channel", "N2"], ["'N2' is not of the form SRC:DST"]),
        (["show", "kept", "--node", "N1", "--channel", "N1:N2"], ["not allowed with"]),
        (["show", "kept", "--node", "N1", "--path", "tokns"], ["N1: there is no 'tokns'", "try: tokens"]),
        (["show", "kept", "--path", "tokns"], ["N1: there is no 'tokns'", "try: tokens"]),
        (["show", "kept", "--path", "tokens["], ["the [ is not closed at character 7"]),
        (["show", "none", "--path", "tokens["], ["the [ is not closed"]),
        (["show", "kept", "--channel", "N1:N2", "--path", "[5]"], ["N1->N2: there is no item [5]", "0 to 1"]),
        (["show", "kept", "--nod", "N1"], ["there is no option --nod", "--node"]),
        (["diff", "kept", "0"], ["required: B"]),
        (["prune", "kept"], ["required: --keep"]),
        (["prune", "kept", "--keep", "0"], ["--keep", "must be a whole number"]),
        (["prune", "none", "--keep", "1"], ["none: there is no such directory"]),
        (["prune", ".", "--keep", "1"], ["not a store"]),
    ],
    ids=lambda value: " ".join(value)[:40].replace("\0", "0") if isinstance(value, list) else None,
)
def test_what_is_not_there_is_refused_by_name(
    command: Command, ring: Path, tmp_path: Path, arguments: list[str], fragments: list[str]
) -> None:
    kept(tmp_path / "empty")
    (tmp_path / "link").symlink_to(ring)
    said = command(*arguments, status=2)
    assert said.stdout == ""
    for fragment in fragments:
        assert fragment in said.error
    assert not (tmp_path / "none").exists()


# --- Damage. ---


def test_a_damaged_snapshot_is_marked_named_and_does_not_hide_the_others(command: Command, ring: Path) -> None:
    manifest = ring / "snap-00000001" / MANIFEST
    manifest.write_text(manifest.read_text().replace("ring:3", "ring:4"))
    said = command("list", "kept", status=3)
    assert [line.split()[-1] for line in said.stdout.splitlines()[2:5]] == ["recovery", "DAMAGED", "recovery"]
    assert str(manifest) in said.error
    entries = command("list", "kept", "--format", "json", status=3).document["snapshots"]
    assert [entry["error"] is None for entry in entries] == [True, False, True]
    assert entries[1].keys() == {"number", "error"}
    assert entries[1]["error"]["where"] == str(manifest)
    assert str(manifest) in command("show", "kept", "1", status=3).error
    assert str(manifest) in command("diff", "kept", "1", "2", status=3).error
    command("diff", "kept", "0", "2")
    said = command("verify", "kept", status=1)
    assert [line.split()[1] for line in said.stdout.splitlines()[2:]] == ["ok", "FAILED", "ok"]
    assert str(manifest) in said.error
    assert "1 of 3 snapshots failed" in said.error
    verdicts = command("verify", "kept", "--format", "json", status=1).document["verdicts"]
    assert [verdict["ok"] for verdict in verdicts] == [True, False, True]


def test_a_large_state_that_is_damaged_is_named(command: Command, tmp_path: Path) -> None:
    """It is read when somebody looks at it, when all else was found to be right."""
    large = {"block": "x" * (1 << 20)}
    states = {**dict.fromkeys(RING.nodes, 1), "N2": large}
    kept(tmp_path / "kept", round_of(0, states, {}, {}))
    file = tmp_path / "kept" / "snap-00000000" / "node-1.state"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    assert str(file) in command("show", "kept", status=3).error
    assert str(file) in command("diff", "kept", "0", "0", status=3).error
    assert str(file) in command("verify", "kept", status=1).error
    command("show", "kept", "--node", "N1")
    command("list", "kept")


def test_a_cut_that_is_not_consistent_is_found_even_if_nobody_claims_it_is(command: Command, tmp_path: Path) -> None:
    snapshot = three()[1]
    snapshot._locals["N1"].sent["N2"] += 1  # type: ignore[index]
    kept(tmp_path / "kept", snapshot)
    said = command("verify", "kept", status=1)
    assert "N1->N2" in said.error
    assert "UNPROVEN" in command("list", "kept").stdout
    assert "NOT CONSISTENT" in command("show", "kept").stdout
    with open_store(tmp_path / "kept") as store, pytest.raises(ConsistencyError):
        store.verify(0)


def _flip(folder: Path, rng: random.Random) -> None:
    file = rng.choice(sorted(folder.iterdir()))
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def _cut_short(folder: Path, rng: random.Random) -> None:
    file = rng.choice(sorted(folder.iterdir()))
    os.truncate(file, rng.randrange(file.stat().st_size))


def _lengthen(folder: Path, rng: random.Random) -> None:
    with open(rng.choice(sorted(folder.iterdir())), "ab") as file:
        file.write(rng.choice([b"\0", b"\n", b" " * 5000]))


def _lose(folder: Path, rng: random.Random) -> None:
    rng.choice(sorted(folder.iterdir())).unlink()


def _add(folder: Path, rng: random.Random) -> None:
    (folder / rng.choice(["node-9.part", "outputs", "node-0.state", ".hidden", "MANIFEST.json~"])).write_bytes(b"x")


def _exchange(folder: Path, rng: random.Random) -> None:
    one, other = rng.sample(sorted(folder.iterdir()), 2)
    one.rename(folder / "between")
    other.rename(one)
    (folder / "between").rename(other)


def _from_another(folder: Path, rng: random.Random) -> None:
    other = folder.parent / ("snap-00000001" if folder.name != "snap-00000001" else "snap-00000002")
    name = rng.choice(["MANIFEST.json", "node-0.part", "node-1.part", "node-2.part"])
    shutil.copy(other / name, folder / name)


def _link(folder: Path, rng: random.Random) -> None:
    file = rng.choice(sorted(folder.iterdir()))
    shutil.move(file, folder.parent / "elsewhere")
    file.symlink_to(folder.parent / "elsewhere")


def _folder(folder: Path, rng: random.Random) -> None:
    file = rng.choice(sorted(folder.iterdir()))
    file.unlink()
    file.mkdir()


def _pipe(folder: Path, rng: random.Random) -> None:
    file = rng.choice(sorted(folder.iterdir()))
    file.unlink()
    os.mkfifo(file)


DAMAGES = [_flip] * 6 + [_cut_short, _lengthen, _lose, _add, _exchange, _from_another, _link, _folder, _pipe]


@pytest.mark.parametrize("block", range(4))
def test_every_damage_is_found(tmp_path: Path, block: int) -> None:
    """Two hundred of them; and what is not damaged stays right."""
    large = {"block": "x" * (1 << 20)}
    last = round_of(2, {**dict.fromkeys(RING.nodes, (1, {2})), "N3": large}, {("N1", "N2"): [[1], "m"]}, {})
    kept(tmp_path / "whole", *three()[:2], last)
    for seed in range(block * 50, block * 50 + 50):
        rng = random.Random(seed)
        damaged = tmp_path / str(seed)
        shutil.copytree(tmp_path / "whole", damaged)
        number = rng.randrange(3)
        folder = damaged / f"snap-{number:08}"
        damage = rng.choice(DAMAGES)
        damage(folder, rng)
        with open_store(damaged) as store:
            for other in store.numbers():
                if other != number:
                    store.verify(other)
            with pytest.raises(SnapshotCorrupt) as caught:
                store.verify(number)
            assert str(folder) in str(caught.value.where), f"seed {seed}: {damage.__name__}"
        shutil.rmtree(damaged)


# --- Hostile stores. ---


class Evil:
    """Leave a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


HOSTILE_TEXT = "\x1b]0;owned\x07\x1b[2J\nmpsnap: error: forged\r\u202egnp"


def hostile(tmp_path: Path) -> Path:
    """Make a store whose values, names and programs are what an attacker would choose; its checksums are right."""
    evil = Codec(pickle=True)
    deep: object = HOSTILE_TEXT
    for _ in range(95):
        deep = [deep]
    states = {
        "N1": Evil(tmp_path / "unpickled"),
        "N2": {
            HOSTILE_TEXT: HOSTILE_TEXT,
            "deep": deep,
            "huge": 10**5000,
            "nan": float("nan"),
            "long": HOSTILE_TEXT * 10_000,
            10**5000: 1,
            "class": Opaque(f"os:{HOSTILE_TEXT}", {HOSTILE_TEXT: 1, "system": "touch unpickled"}),
        },
        "N3": Opaque("evil_program:Node", "touched"),
    }
    messages: dict[tuple[str, str], list[object]] = {("N1", "N2"): [Evil(tmp_path / "unpickled"), HOSTILE_TEXT]}
    snapshot = cut(RING, states, messages, codec=evil)
    told: dict[str, Any] = {
        "program": f"evil_program:{HOSTILE_TEXT}",
        "codec": "pickle",
        "run": {"app": "evil_program:Node"},
    }
    timers = {"N2": (Timer(1e308, None, HOSTILE_TEXT, (HOSTILE_TEXT,)),)}
    with DirectoryStore(tmp_path / "evil") as store:
        keep(store, snapshot, timers=timers, wall_time=1e300, **told)
        keep(store, three()[1], **told)
    return tmp_path / "evil"


EVERY_LOOK = [
    ["list", "evil"],
    ["show", "evil", "0"],
    ["show", "evil", "0", "--full"],
    ["show", "evil", "0", "--node", "N1", "--full"],
    ["show", "evil", "0", "--node", "N2"],
    ["show", "evil", "0", "--node", "N2", "--full"],
    ["show", "evil", "0", "--node", "N2", "--path", "class"],
    ["show", "evil", "0", "--channel", "N1:N2", "--full"],
    ["show", "evil", "0", "--path", ""],
    ["diff", "evil", "0", "1"],
    ["diff", "evil", "0", "1", "--full"],
    ["verify", "evil"],
]


@pytest.mark.parametrize("arguments", EVERY_LOOK, ids=" ".join)
@pytest.mark.parametrize("form", ["table", "json"])
def test_looking_at_a_hostile_store_runs_nothing_and_steers_no_terminal(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], form: str
) -> None:
    hostile(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_program.py").write_text("import pathlib\npathlib.Path('imported').touch()\nclass Node: ...\n")
    text = command(*arguments, "--format", form).stdout
    assert not (tmp_path / "unpickled").exists()
    assert not (tmp_path / "imported").exists()
    assert "evil_program" not in sys.modules
    assert text.replace("\n", "").isprintable()
    assert not any(line.startswith("mpsnap: error") for line in text.splitlines())
    if form == "json":
        json.loads(text)


def test_the_bomb_is_one() -> None:
    """Or the test above would prove nothing."""
    path = Path("/dev/null")
    value = Codec(pickle=True).decode(Codec(pickle=True).encode(Evil(path)))
    assert value is None, "it was run"
    assert isinstance(Codec().decode(Codec(pickle=True).encode(Evil(path))), Pickled)


def _rewritten(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the manifest of snapshot 0 says, and make its checksum right again."""
    path = store / "snap-00000000" / MANIFEST
    plain = json.loads(path.read_text())
    del plain["checksum"]
    change(plain)
    path.write_bytes(_render(plain))


def _set(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(plain: dict[str, Any]) -> None:
        for step in path[:-1]:
            plain = plain[step]
        plain[path[-1]] = to

    return change


def _deep(plain: dict[str, Any]) -> None:
    value: list[Any] = []
    for _ in range(300):
        value = [value]
    plain["run"]["deep"] = value


def _rename_node(plain: dict[str, Any]) -> None:
    for part in (plain["nodes"], plain["topology"]["tokens"]):
        part["../N1"] = part.pop("N1")
    plain["topology"]["nodes"][0] = "../N1"


FORGERIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "a file above": _set("nodes", "N1", "part", "name", to="../../LOCK"),
    "an absolute file": _set("nodes", "N1", "part", "name", to="/etc/passwd"),
    "a file with a NUL": _set("nodes", "N1", "part", "name", to="node-0.part\0"),
    "a huge file": _set("nodes", "N1", "part", "size", to=1 << 62),
    "a number beyond all": _set("number", to=10**4000),
    "a negative count": _set("nodes", "N1", "sent", "N2", to=-1),
    "a count that is no number": _set("nodes", "N1", "sent", "N2", to=True),
    "an initiator that steers": _set("initiators", to=[HOSTILE_TEXT]),
    "a codec of its own": _set("nodes", "N1", "codec", to="yaml"),
    "another format": _set("format", to=99),
    "deep nesting": _deep,
    "a node above": _rename_node,
    "another number": _set("number", to=1),
    "an id that steers": _set("id", to=f"0-{HOSTILE_TEXT}-1"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_manifest_is_damage_in_one_line(command: Command, ring: Path, what: str) -> None:
    _rewritten(ring, FORGERIES[what])
    statuses = {"list": 3, "show": 3, "diff": 3, "verify": 1}
    for verb, more in (("list", []), ("show", ["0"]), ("diff", ["0", "1"]), ("verify", [])):
        said = command(verb, "kept", *more, status=statuses[verb])
        assert "snap-00000000" in said.error
        assert said.stdout.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "state",
    [b"\x91" * 5000 + b"\xc0", b"\xdd\xff\xff\xff\xff", b"\xc1", b"", PLAIN.encode(1)[:0], b"\xc7\x01\x05x"],
    ids=["deep", "long", "reserved", "empty", "nothing", "extension"],
)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_state_that_cannot_be_decoded_is_damage_of_its_file(
    command: Command, tmp_path: Path, state: bytes, size: str
) -> None:
    """With checksums that are right: somebody has made it so."""
    snapshot = three()[0]
    part = snapshot._locals["N2"]
    assert isinstance(part.captured, Captured)
    data = state if size == "small" else state + bytes(1 << 21)
    parts = {**snapshot._locals, "N2": part._replace(captured=part.captured._replace(state=data))}
    codecs = dict.fromkeys(RING.nodes, PLAIN)
    kept(tmp_path / "kept", GlobalSnapshot(0, snapshot.id, ("N1",), RING, parts, codecs), three()[1])
    file = str(tmp_path / "kept" / "snap-00000000" / f"node-1.{'part' if size == 'small' else 'state'}")
    assert file in command("show", "kept", "0", status=3).error
    assert file in command("diff", "kept", "0", "1", status=3).error
    assert file in command("verify", "kept", status=1).error
    command("list", "kept")


def test_links_are_never_followed(command: Command, ring: Path, tmp_path: Path) -> None:
    shutil.move(ring / "snap-00000000", tmp_path / "elsewhere")
    (ring / "snap-00000000").symlink_to(tmp_path / "elsewhere")
    (ring / "snap-00000001" / "node-0.part").unlink()
    (ring / "snap-00000001" / "node-0.part").symlink_to("/etc/passwd")
    assert "snap-00000000" in command("show", "kept", "0", status=3).error
    said = command("show", "kept", "1", status=3)
    assert "this is no plain file" in said.error
    verdicts = command("verify", "kept", "--format", "json", status=1).document["verdicts"]
    assert [verdict["ok"] for verdict in verdicts] == [False, False, True]


# --- Pruning, and beside a run. ---


def test_pruning_keeps_the_newest_and_what_a_cluster_needs(command: Command, tmp_path: Path) -> None:
    with DirectoryStore(tmp_path / "kept") as store:
        for index in range(6):
            keep(store, three()[1], recovery_point=index == 1)
    assert command("prune", "kept", "--keep", "9").stdout == "removed none; kept 0, 1, 2, 3, 4, 5\n"
    assert command("prune", "kept", "--keep", "2").stdout == "removed 0, 2, 3; kept 1, 4, 5\n"
    with open_store(tmp_path / "kept") as store_:
        assert store_.numbers() == (1, 4, 5)


@pytest.mark.processes
def test_a_store_in_use_is_not_pruned(ring: Path, tmp_path: Path) -> None:
    with DirectoryStore(ring):
        done = mpsnap("prune", "kept", "--keep", "1", cwd=tmp_path, status=2)
        assert f"the store is in use by process {os.getpid()}" in done.error
        assert "0-N1-5" in mpsnap("list", "kept", cwd=tmp_path).stdout
    with open_store(ring) as store:
        assert store.numbers() == (0, 1, 2)


WRITER = """
import sys
from keeping import keep, three
from mpsnap.store.directory import DirectoryStore
with DirectoryStore(sys.argv[1]) as store:
    for _ in range(60):
        keep(store, three()[1])
        store.retain(2)
"""


@pytest.mark.processes
def test_reading_while_a_run_commits_and_removes(command: Command, ring: Path, tmp_path: Path) -> None:
    """Whole snapshots or none, whatever is removed in the middle of a look."""
    tests = str(Path(__file__).parent)
    path = os.pathsep.join([tests, ENVIRONMENT["PYTHONPATH"]])
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(ring)], env={**ENVIRONMENT, "PYTHONPATH": path})
    looks = 0
    with writer, open_store(ring) as store:
        while writer.poll() is None:
            for snapshot in store:
                assert sum(node.state["tokens"] for node in snapshot.nodes.values()) in (30, 22)
                snapshot.verify()
            assert store.latest().verified
            for verb in ("list", "show", "verify"):
                assert command(verb, "kept").stderr == ""
            command("diff", "kept", "latest", "latest", "--format", "json")
            looks += 1
        assert writer.returncode == 0
        assert store.numbers() == (61, 62)
    assert looks


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_if_all_that_was_there_is_removed_meanwhile_the_next_look_counts(
    command: Command, ring: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    really, first = StoredSnapshots.numbers, iter([(98, 99)])
    monkeypatch.setattr(StoredSnapshots, "numbers", lambda store: next(first, None) or really(store))
    shown = command(verb, "kept").stdout
    assert [line.split()[0] for line in shown.splitlines()[2:5]] == ["0", "1", "2"]


@pytest.mark.processes
def test_whoever_reads_stdout_may_go_away(tmp_path: Path) -> None:
    topology = parse_topology("ring:200")
    kept(tmp_path / "kept", cut(topology, {node: {"text": "x" * 5000} for node in topology.nodes}, {}))
    python = " ".join(COMMAND)
    for verb in ("show kept --full", "show kept --format json", "list kept", "diff kept 0 0 --full"):
        done = run(f"set -o pipefail; {python} {verb} | head -n 1", cwd=tmp_path)
        assert done.stderr == ""
        assert done.status in (0, 3)
        assert len(done.stdout.splitlines()) == 1
    done = run(f"{python} list kept > /dev/full", cwd=tmp_path)
    assert (done.status, done.error) == (3, "stdout: cannot be written: No space left on device")


# --- The examples of the help. ---


@pytest.mark.parametrize("verb", ["list", "show", "diff", "verify", "prune"])
def test_the_examples_of_the_help_run(command: Command, ring: Path, verb: str) -> None:
    verbs = next(action for action in parser()._actions if action.dest == "verb")
    with DirectoryStore(ring) as store:
        keep(store, three()[2])
    epilog = verbs.choices[verb].epilog  # type: ignore[index]
    examples = [line.strip() for line in epilog.splitlines() if line.startswith("  python -m mpsnap ")]
    assert examples
    for example in examples:
        assert shlex.split(example)[3] == verb
        assert command(*shlex.split(example)[3:]).stdout
