"""`run --store` and `resume` as their users meet them: what survives, what is shown, and what is refused."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from cli_harness import ENVIRONMENT, QUICK, Done, mpsnap, run, under_way, write
from conftest import wait_until

from mpsnap.cli import main
from mpsnap.cli.emit import EmitFile
from mpsnap.cli.storing import complete
from mpsnap.core.codec import Codec
from mpsnap.core.errors import InputError
from mpsnap.core.events import Emitted
from mpsnap.core.part import pack_lasting
from mpsnap.core.snapshot import Captured
from mpsnap.runtime.chaos import Chaos, Rates, blows
from mpsnap.runtime.seal import Key, own_key
from mpsnap.runtime.supervisor import Supervisor
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.manifest import MANIFEST, Manifest, Receipt, content, read
from mpsnap.store.manifest import write as text_of
from mpsnap.store.reader import DirectoryReader

pytestmark = pytest.mark.processes

APP = """
    import os, signal
    from dataclasses import dataclass
    from mpsnap import Node

    def first_time(path):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    class Stage(Node):
        # Passes 1, 2, ... on; kills itself at the numbers in `deadly`, once each.
        endless = False

        def setup(self, ctx, most=300, deadly=(), waits=0):
            self.most, self.deadly, self.waits = most, list(deadly), waits
            self.sent = self.got = 0

        def on_idle(self, ctx):
            if ctx.inbound or self.sent >= self.most:
                return False
            if self.waits and self.sent == self.waits and not os.path.exists("go"):
                return True
            self.sent += 1
            ctx.send(ctx.outbound[0], self.sent)
            return True

        def on_message(self, ctx, sender, payload):
            assert payload == self.got + 1, f"{payload} after {self.got}"
            if payload in self.deadly and first_time(f"dead-{ctx.name}-{payload}"):
                os.kill(os.getpid(), signal.SIGKILL)
            self.got = payload
            if ctx.outbound:
                ctx.send(ctx.outbound[0], payload)
            else:
                ctx.emit(payload)

    class Idle(Node):
        def on_command(self, ctx, command):
            return True

    class Hangs(Node):
        def on_idle(self, ctx):
            if ctx.name == "N2":
                while True:
                    pass

    class Pickling(Node):
        pickle = True

        def setup(self, ctx):
            self.held = Bomb()

    class Bomb:
        def __reduce__(self):
            return first_time, ("unpickled",)

    @dataclass
    class Parcel:
        label: str

    class Holds(Node):
        def setup(self, ctx):
            self.parcel = Parcel("one")

    class Fails(Node):
        def setup(self, ctx, deadly=True):
            self.deadly = deadly

        def on_idle(self, ctx):
            if ctx.name == "N2":
                raise RuntimeError("for ever")
    """
LINE = ("app.py:Stage", "--topology", "line:4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "app.py", APP)
    return tmp_path


def records(path: Path) -> list[Any]:
    """Return the records of a file of `--emit`, each a whole line."""
    text = path.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line)["record"] for line in text.splitlines()]


def newest(store: Path) -> int:
    """Return the number of the newest snapshot in a store, -1 if there is none; a run may be writing."""
    found = [int(name.name[5:]) for name in store.glob("snap-*")] if store.exists() else []
    return max(found, default=-1)


def killed_in_the_middle(folder: Path, *arguments: str, ready: Callable[[], object]) -> None:
    """Run a command and kill its supervisor, and nothing else, as soon as something holds."""
    with under_way(*arguments, cwd=folder, stdout=subprocess.DEVNULL) as started:
        wait_until(lambda: ready() or started.poll() is not None, "the moment to kill", 60)
        assert started.poll() is None, started.communicate()
        started.kill()
        started.communicate(timeout=30)


def begun(folder: Path, *arguments: str, snapshots: int = 0) -> None:
    """Leave a store `kept` that can be gone on from: its supervisor was killed when it had so many snapshots."""
    app = arguments or ("app.py:Idle", "--topology", "ring:3")
    killed_in_the_middle(
        folder,
        *("run", *app, "--store", "kept", "--snapshot-every", "0.05", "--duration", "60", *QUICK),
        ready=lambda: newest(folder / "kept") >= snapshots,
    )


# --- Deaths that are survived. ---


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_a_run_with_a_store_survives_deaths_and_says_so(folder: Path, start_method: str) -> None:
    given = ("--param", "deadly=[200]", "--store", "kept", "--emit", "out", "--snapshot-every", "0.02")
    done = mpsnap("run", *LINE, *given, "--format", "json", "--start-method", start_method, cwd=folder)
    document = done.document
    assert document["error"] is None
    facts = document["run"]
    deaths, recoveries = facts["deaths"], facts["recoveries"]
    assert 1 <= len(deaths) <= 3, "three nodes, which may fall together"
    for death in deaths:
        assert death.keys() == {"node", "what", "where", "try"}
        assert re.fullmatch(r"N[234] died in on_message: killed by SIGKILL \(.*\)", death["what"])
    assert [recovery.keys() for recovery in recoveries] == [{"incarnation", "number", "seconds"}] * len(deaths)
    incarnations = [recovery["incarnation"] for recovery in recoveries]
    assert incarnations == sorted(set(incarnations))
    assert all(recovery["seconds"] > 0 for recovery in recoveries)
    assert document["snapshots"][0]["number"] == 0
    assert all(snapshot["verified"] for snapshot in document["snapshots"])
    assert records(folder / "out") == list(range(1, 301))
    assert [output["record"] for output in document["outputs"]] == list(range(1, 301))
    assert f"{deaths[0]['what']}\n" in done.stderr
    assert re.search(r"all nodes went on from snapshot \d+, [\d.]+ s after the death", done.stderr)


def test_a_run_without_a_store_has_had_no_deaths(folder: Path) -> None:
    done = mpsnap("run", "--snapshots", "1", "--format", "json", *QUICK, cwd=folder)
    assert done.document["run"]["deaths"] == done.document["run"]["recoveries"] == []


def test_the_summary_counts_deaths_and_says_that_nothing_else_was(folder: Path) -> None:
    done = mpsnap("run", *LINE, "--param", "deadly=[50]", "--store", "kept", "--quiet", *QUICK, cwd=folder)
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"[123] deaths?, [123] recover(y|ies), [\d.]+ s lost; every snapshot was consistent", last)
    assert done.stderr == ""


def test_so_many_snapshots_are_taken_besides_the_first_and_the_last(folder: Path) -> None:
    """What is taken for recovery's own sake does not count; what a death has taken along is taken again."""
    given = ("--topology", "ring:3", "--store", "kept", "--chaos", "kill=8,seed=3", "--snapshots", "12")
    done = mpsnap("run", *given, "--concurrent", "3", "--format", "json", *QUICK, cwd=folder)
    snapshots = done.document["snapshots"]
    assert len(snapshots) == 14
    tokens = [
        sum(node["state"]["tokens"] for node in snapshot["nodes"].values())
        + sum(sum(channel["messages"]) for channel in snapshot["channels"])
        for snapshot in snapshots
    ]
    assert tokens == [30] * 14
    with DirectoryStore(folder / "kept") as store:
        assert len(store.numbers()) == 10, "so many are kept unless told otherwise"


@pytest.mark.parametrize("store", [(), ("--store", "kept")])
def test_snapshots_without_a_gap_do_not_keep_a_run_from_its_end(folder: Path, store: tuple[str, ...]) -> None:
    """Each takes longer than there is between two, so that one is always open."""
    given = ("--param", "most=50", "--snapshot-every", "0.00001", "--format", "json", *store, *QUICK)
    document = mpsnap("run", *LINE, *given, cwd=folder).document
    assert document["error"] is None
    assert [output["record"] for output in document["outputs"]] == list(range(1, 51))


def test_a_node_that_fails_for_ever_ends_the_run_after_so_many_restarts(folder: Path) -> None:
    given = ("app.py:Fails", "--topology", "ring:2", "--store", "kept", "--restarts", "2", *QUICK)
    done = mpsnap("run", *given, "--format", "json", cwd=folder, status=3)
    assert re.search(
        r"app.py:\d+: N2 failed in on_idle: RuntimeError: for ever, and that after 2 recoveries within 60 s; try: ",
        done.error,
    )
    assert len(done.document["run"]["deaths"]) == 3
    assert len(done.document["run"]["recoveries"]) == 2
    done = mpsnap(*("run", *given[:4], "other", "--restarts", "0", *QUICK), cwd=folder, status=3)
    assert "for ever; try: a look at what it did last" in done.error


def test_a_script_goes_on_over_a_death(folder: Path) -> None:
    """Its lines are not given twice, and one that was lost is given again."""
    lines = [f"send N{k} N{k % 3 + 1} 1\ntick 20\nsnapshot N{k}" for k in (1, 2, 3) * 3]
    (folder / "net.events").write_text("\n".join(lines))
    given = ("--topology", "ring:3", "--events", "net.events", "--store", "kept", "--chaos", "kill=6,stop=2,seed=2")
    done = mpsnap("run", *given, "--format", "json", *QUICK, cwd=folder)
    assert done.document["error"] is None
    assert len(done.document["snapshots"]) == 9 + 2


def test_a_hook_that_hangs_ends_the_run_or_is_recovered_from(folder: Path) -> None:
    given = ("app.py:Hangs", "--topology", "ring:2", "--handler-deadline", "0.3", *QUICK)
    done = mpsnap("run", *given, "--format", "json", cwd=folder, status=3)
    what = r"N2 hangs: on_idle has not returned for [\d.]+ s, the deadline is 0.3 s"
    assert re.fullmatch(what + "; try: a look at its stack, on stderr", done.error)
    assert re.search(r'app.py", line \d+ in on_idle', done.stderr), "its stack"
    assert done.document["error"]["where"] == "N2"
    done = mpsnap(*("run", *given, "--store", "kept", "--restarts", "1", "--format", "json"), cwd=folder, status=3)
    assert [re.match(what, death["what"]) is not None for death in done.document["run"]["deaths"]] == [True] * 2


# --- Records, exactly once. ---


def test_each_record_is_written_once_whatever_is_killed(folder: Path) -> None:
    """Nodes kill themselves; the supervisor is killed in the middle, twice, and the second time while it goes on."""
    out = folder / "out"
    given = ("--param", "most=5000", "--param", "deadly=[700, 4100]", "--param", "waits=3000", "--restarts", "50")
    pace = ("--snapshot-every", "0.02", *QUICK)

    def lines() -> int:
        return out.read_bytes().count(b"\n") if out.exists() else 0

    killed_in_the_middle(
        folder, "run", *LINE, *given, "--store", "kept", "--emit", "out", *pace, ready=lambda: lines() >= 1000
    )
    before = newest(folder / "kept")
    killed_in_the_middle(folder, "resume", "kept", ready=lambda: lines() >= 2000 and newest(folder / "kept") > before)
    (folder / "go").touch()
    done = mpsnap("resume", "kept", "--format", "json", cwd=folder)
    assert done.document["error"] is None
    assert records(out) == list(range(1, 5001))


def test_what_was_committed_and_not_yet_written_is_written_by_who_goes_on(folder: Path) -> None:
    """A supervisor that dies between the two leaves a file that is short; one that dies after, one that is long."""
    begun(folder, *LINE, "--emit", "out", "--param", "waits=100", "--param", "most=300", snapshots=4)
    with (folder / "out").open("ab") as file:
        file.write(b'{"half a li')
    (folder / "go").touch()
    mpsnap("resume", "kept", cwd=folder)
    assert records(folder / "out") == list(range(1, 301))


def test_a_file_that_was_moved_is_named(folder: Path) -> None:
    begun(folder, *LINE, "--emit", "out", "--param", "waits=100", snapshots=4)
    (folder / "go").touch()
    (folder / "out").rename(folder / "elsewhere")
    done = mpsnap("resume", "kept", cwd=folder, status=2)
    path = folder / "out"
    assert done.error == f"{path}: the file of what was emitted is not there; try: --emit FILE, where it is now"
    mpsnap("resume", "kept", "--emit", "elsewhere", cwd=folder)
    assert records(folder / "elsewhere") == list(range(1, 301))


def test_records_of_a_run_that_kept_none_in_a_file_can_be_from_now_on(folder: Path) -> None:
    begun(folder, *LINE, "--param", "waits=100", snapshots=4)
    (folder / "go").touch()
    mpsnap("resume", "kept", "--emit", "out", cwd=folder)
    kept = records(folder / "out")
    assert kept == list(range(kept[0], 301))


def test_a_fresh_run_begins_its_file_anew(folder: Path) -> None:
    (folder / "out").write_text("what was there before\n")
    mpsnap("run", *LINE, "--store", "kept", "--emit", "out", "--param", "most=3", *QUICK, cwd=folder)
    assert records(folder / "out") == [1, 2, 3]


def test_records_that_cannot_wait_are_shown_at_once(folder: Path) -> None:
    """All come, some perhaps twice, although no snapshot covers them but the last."""
    given = ("--store", "kept", "--emit", "out", "--emit-early", "--param", "deadly=[50]", *QUICK)
    mpsnap("run", *LINE, *given, cwd=folder)
    assert sorted(set(records(folder / "out"))) == list(range(1, 301))


def test_a_file_is_changed_only_when_the_run_begins(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("0123456789")
    emit = EmitFile(str(path), 4)
    assert path.read_text() == "0123456789"
    with emit:
        assert emit.sync() == 4
        emit.write([Emitted("N1", 0, "ä")])
        assert emit.sync() == path.stat().st_size
    assert path.read_text() == '0123{"node": "N1", "n": 0, "record": "\\u00e4"}\n'
    with pytest.raises(InputError) as caught:
        EmitFile(str(path), 1000)
    assert f"{path}: it has {path.stat().st_size} bytes and had 1000 at that snapshot" in str(caught.value)


# --- Going on. ---


def test_a_run_goes_on_with_its_own_options_from_wherever_it_is_resumed(folder: Path) -> None:
    """The app, an invariant and the initiators are those of the run, in the folder where it was started."""
    (folder / "laws.py").write_text("def yes(snapshot): return True\n")
    given = ("--seed", "7", "--param", "waits=100", "--invariant", "laws.py:yes", "--initiator", "N1")
    begun(folder, *LINE, *given, snapshots=3)
    before = newest(folder / "kept")
    (folder / "go").touch()
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    done = mpsnap("resume", "../kept", "--format", "json", "--out", "shown", cwd=elsewhere)
    facts = done.document["run"]
    assert (facts["app"], facts["seed"], facts["topology"]) == ("app.py:Stage", 7, "line:4")
    assert [output["record"] for output in done.document["outputs"]][-1] == 300
    numbers = [snapshot["number"] for snapshot in done.document["snapshots"]]
    assert numbers[0] > before
    assert (elsewhere / "shown" / f"{numbers[0]}.json").exists()
    assert not (folder / "shown").exists()


def test_a_resumed_run_can_be_resumed(folder: Path) -> None:
    begun(folder, snapshots=2)
    first = newest(folder / "kept")
    killed_in_the_middle(folder, "resume", "kept", ready=lambda: newest(folder / "kept") > first + 1)
    done = mpsnap("resume", "kept", "--snapshots", "2", "--duration", "20", "--format", "json", cwd=folder)
    assert done.document["error"] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_last_cut(folder: Path, number: signal.Signals) -> None:
    kept = ("--store", "kept", "--format", "json", "--duration", "60")
    with under_way("run", *kept, *QUICK, cwd=folder) as started:
        wait_until(lambda: newest(folder / "kept") >= 0, "the first snapshot", 30)
        started.send_signal(number)
        stdout, stderr = started.communicate(timeout=60)
    assert started.returncode == 130, stderr
    assert json.loads(stdout)["error"] is None
    with DirectoryStore(folder / "kept") as store:
        manifest = store.latest()
        assert manifest is not None
        # Killed before the nodes were ready, it has no last cut; the first is there all the same.
        assert manifest.run["final"] is (manifest.number > 0)


# --- What is refused. ---

Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> Refused:
    """Give a command a folder with an app, forbid it to start anything, and return the line that says why not."""

    def start(self: Supervisor) -> None:
        pytest.fail("a cluster is started")

    monkeypatch.setattr(Supervisor, "start", start)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def refuse(*arguments: str) -> str:
        monkeypatch.chdir(folder)
        status: object
        try:
            status = main(arguments)
        except SystemExit as ending:
            status = ending.code
        for name in set(sys.modules) - before:
            del sys.modules[name]
        stdout, stderr = capsys.readouterr()
        assert (status, stdout) == (2, ""), stderr
        assert stderr.startswith("mpsnap: error: ")
        assert stderr.count("\n") == 1
        return stderr.removeprefix("mpsnap: error: ").removesuffix("\n")

    return refuse


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--keep", "3"], "--keep does not go without --store; try: --store DIR"),
        (["--restarts", "3"], "--restarts does not go without --store; try: --store DIR"),
        (["--restarts", "0"], "--restarts does not go without --store; try: --store DIR"),
        (["--emit-early"], "--emit-early does not go without --store; try: --store DIR"),
        (["--chaos", "kill=1"], "--chaos does not go without --store; try: --store DIR"),
        (
            ["--store", "kept", "--log", "log"],
            "--log does not go with --store: the event log knows no recovery; try: leaving one of them out",
        ),
        (
            ["--store", "kept", "--emit", "/dev/null"],
            "--emit /dev/null: with --store this must be a plain file",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(refused: Refused, arguments: list[str], line: str) -> None:
    assert refused("run", *arguments) == line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not of the form kill=RATE,stop=RATE,seed=N"),
        ("kill", "'' is not a number of times a second"),
        ("kil=1", "'kil=1' is not of the form kill=RATE,stop=RATE,seed=N"),
        ("kill=1,kill=2", "'kill=1,kill=2' is not of the form kill=RATE,stop=RATE,seed=N"),
        ("kill=-1", "'-1' is not a number of times a second"),
        ("kill=nan", "'nan' is not a number of times a second"),
        ("stop=inf", "'inf' is not a number of times a second"),
        ("kill=0,stop=0", "'kill=0,stop=0' kills and stops nobody"),
        ("seed=3", "'seed=3' kills and stops nobody"),
        ("kill=1,seed=x", "must be a whole number, not 'x'"),
    ],
)
def test_chaos_is_of_one_form(refused: Refused, text: str, reason: str) -> None:
    assert refused("run", "--store", "kept", "--chaos", text) == (
        f"argument --chaos: {reason}; try: python -m mpsnap run --help"
    )


def test_a_store_that_cannot_be_used_is_refused(refused: Refused, folder: Path) -> None:
    (folder / "file").touch()
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    assert "a store is a directory" in refused("run", "--store", "file")
    assert "this directory is not a store of snapshots" in refused("run", "--store", "full")
    assert "no folder to make the store in" in refused("run", "--store", "no/kept")
    assert refused("resume", "missing") == f"{folder}/missing: there is no such directory"
    with DirectoryStore(folder / "kept"):
        for verb in (("run", "--store"), ("resume",)):
            assert refused(*verb, "kept") == (
                f"{folder}/kept: the store is in use by this process ({os.getpid()}); "
                "try: another store, or the end of that run"
            )
    assert refused("resume", "kept") == (
        f"{folder}/kept: there is no snapshot here to go on from; try: a run from its beginning with {folder}/kept"
    )


def test_a_store_of_a_run_that_goes_on_names_the_one_that_runs_it(folder: Path, refused: Refused) -> None:
    said: list[str] = []
    holder: list[int] = []

    def second() -> bool:
        if newest(folder / "kept") < 0:
            return False
        holder.extend(int(text) for text in (folder / "kept" / "LOCK").read_text().split())
        said.append(refused("resume", "kept"))
        return True

    killed_in_the_middle(folder, "run", "app.py:Idle", "--store", "kept", "--duration", "60", *QUICK, ready=second)
    assert said == [
        f"{folder}/kept: the store is in use by process {holder[0]}; try: another store, or the end of that run"
    ]


def test_a_store_with_a_run_in_it_is_gone_on_with_and_not_begun_again(folder: Path, refused: Refused) -> None:
    begun(folder)
    number = newest(folder / "kept")
    assert refused("run", "--store", "kept") == (
        f"kept: the store holds the snapshots of a run already, the newest is {number}; "
        "try: resume kept, or another --store"
    )


def test_a_run_that_has_ended_is_not_gone_on_with_unless_from_before(folder: Path, refused: Refused) -> None:
    mpsnap("run", *LINE, "--store", "kept", "--param", "most=5", "--snapshots", "2", *QUICK, cwd=folder)
    last = newest(folder / "kept")
    line = refused("resume", "kept")
    match = re.search(r"; try: --from (\d+) to go on from before its end$", line)
    assert match is not None, line
    assert line.startswith(f"{folder}/kept: this run has ended, snapshot {last} holds what it left; ")
    assert int(match[1]) < last
    mpsnap("resume", "kept", "--from", match[1], cwd=folder)


def test_an_unreadable_newest_snapshot_is_refused_until_an_older_one_is_named(folder: Path, refused: Refused) -> None:
    """To go on from an older one loses and repeats what was done since: that is for people to decide."""
    begun(folder, *LINE, "--emit", "out", "--param", "waits=100", snapshots=3)
    number = newest(folder / "kept")
    (folder / "go").touch()
    part = folder / "kept" / f"snap-{number:08}" / "node-2.part"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    line = refused("resume", "kept")
    assert line.startswith(f"{part}: this file does not hold what was committed: ")
    assert line.endswith(f"; try: --from {number - 1}, an older one: what was done after it is done again")
    manifest = part.parent / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"verified": true', '"verified": false'))
    assert refused("resume", "kept").startswith(f"{manifest}: not a manifest: ")
    assert refused("resume", "kept", "--from", "999").startswith(f"{folder}/kept: there is no snapshot 999")
    mpsnap("resume", "kept", "--from", str(number - 1), cwd=folder)
    assert records(folder / "out") == list(range(1, 301))


def test_pickles_are_refused_before_they_are_read(folder: Path, refused: Refused, data: Path) -> None:
    begun(folder, "app.py:Pickling", "--topology", "ring:2")
    (folder / "unpickled").unlink(missing_ok=True)
    number = newest(folder / "kept")
    assert refused("resume", "kept") == (
        f"{folder}/kept: snapshot {number} holds pickles of N1, N2, and to take them back runs code; "
        "try: --allow-pickle, if the run was yours"
    )
    assert not (folder / "unpickled").exists()
    mpsnap("resume", "kept", "--allow-pickle", "--duration", "0.2", cwd=folder)
    assert (folder / "unpickled").exists()
    secret = (data / "mpsnap" / "key").read_bytes()
    for path in (folder / "kept").rglob("*"):
        assert path.is_dir() or (secret not in path.read_bytes() and secret.hex().encode() not in path.read_bytes())


class Evil:
    """Leave a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def plant(store: Path, number: int, evil: object) -> None:
    """Put a state of one's own into a snapshot, and make every checksum right again; the seal stays as it is."""
    at = store / f"snap-{number:08}"
    with DirectoryReader(store) as reader, reader.contents(number) as contents:
        local = contents.part("N1")
    assert isinstance(local.captured, Captured)
    data = pack_lasting(local._replace(captured=local.captured._replace(state=Codec(pickle=True).encode(evil))))
    (at / "node-0.part").write_bytes(data)
    receipt = Receipt("node-0.part", len(data), sha256(data).hexdigest())

    def name_it(manifest: Manifest) -> Manifest:
        return manifest._replace(nodes={**manifest.nodes, "N1": manifest.nodes["N1"]._replace(part=receipt)})

    rewrite(at / MANIFEST, name_it)


def rewrite(path: Path, change: Callable[[Manifest], Manifest]) -> None:
    path.write_bytes(text_of(change(read(path.read_bytes()))))


def sealed_with(key: Key | None) -> Callable[[Manifest], Manifest]:
    return lambda manifest: manifest._replace(seal=None if key is None else key.seal(content(manifest)))


def as_if_plain(manifest: Manifest) -> Manifest:
    nodes = {node: entry._replace(codec="plain") for node, entry in manifest.nodes.items()}
    return manifest._replace(nodes=nodes, seal=None)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give commands, and what is called here, a place for keys that does not exist yet."""
    monkeypatch.setitem(ENVIRONMENT, "XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def test_with_pickles_allowed_only_what_is_ones_own_is_taken_back(folder: Path, refused: Refused, data: Path) -> None:
    begun(folder, "app.py:Pickling", "--topology", "ring:2")
    number = newest(folder / "kept")
    path = folder / "kept" / f"snap-{number:08}" / MANIFEST
    key = data / "mpsnap" / "key"
    own = path.read_bytes()
    with (folder / "app.py").open("a") as app:
        app.write("open('imported', 'w').close()\n")

    def refused_since(why: str) -> None:
        assert refused("resume", "kept", "--allow-pickle") == (
            f"{path}: snapshot {number} was not taken by you here, or was changed since ({why}), and it holds pickles; "
            "try: a run from its beginning with another --store; "
            f"or, if it was yours elsewhere, the key of there as {key}"
        )
        assert not (folder / "imported").exists(), "no code of the store's choice has run"
        assert not (folder / "planted").exists()

    rewrite(path, lambda manifest: manifest._replace(wall_time=1.5))
    refused_since("its seal is not yours")
    path.write_bytes(own)
    plant(folder / "kept", number, Evil(folder / "planted"))
    refused_since("its seal is not yours")
    rewrite(path, sealed_with(Key(b"another key, of somebody else's!")))
    refused_since("its seal is not yours")
    rewrite(path, sealed_with(None))
    refused_since("it has no seal")
    key.rename(folder / "key")
    refused_since("it has no seal")
    rewrite(path, sealed_with(Key((folder / "key").read_bytes())))
    refused_since(f"there is no key of yours, {key}")
    assert not key.exists(), "and none is made to look at seals"
    rewrite(path, as_if_plain)
    unsealed = (
        f"{folder}/kept: N1, N2 would take pickles back, and snapshot {number} was taken without, unsealed; "
        "try: the program that it was taken with, or a run from its beginning with another --store"
    )
    for allowed in ((), ("--allow-pickle",)):
        assert refused("resume", "kept", *allowed) == unsealed
    assert not (folder / "planted").exists()


def test_what_is_planted_above_would_have_been_run(folder: Path, data: Path) -> None:
    """Or the test above would prove nothing: with the key the same store is resumed, and every snapshot is sealed."""
    begun(folder, "app.py:Pickling", "--topology", "ring:2")
    number = newest(folder / "kept")
    plant(folder / "kept", number, Evil(folder / "planted"))
    rewrite(folder / "kept" / f"snap-{number:08}" / MANIFEST, sealed_with(own_key()))
    mpsnap("resume", "kept", "--allow-pickle", "--duration", "0.2", "--restarts", "0", cwd=folder, status=None)
    assert (folder / "planted").exists()


def test_a_key_that_is_not_ones_own_alone_ends_it_before_anything_begins(
    folder: Path, refused: Refused, data: Path
) -> None:
    begun(folder, "app.py:Pickling", "--topology", "ring:2")
    key = data / "mpsnap" / "key"
    key.chmod(0o644)
    for command in (("resume", "kept", "--allow-pickle"), ("run", "app.py:Pickling", "--store", "new")):
        assert refused(*command) == (
            f"{key}: the key that pickles are sealed with is not for you alone (its mode is 644); "
            f"try: chmod 600 {key}, if nobody else has been at it"
        )
    assert newest(folder / "new") == -1


def test_a_run_that_could_not_seal_is_refused_before_anything_begins(
    folder: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/nowhere")
    assert refused("run", "app.py:Pickling", "--topology", "ring:2", "--store", "kept") == (
        "/proc/nowhere/mpsnap/key: the key that pickles are sealed with cannot be made: No such file or directory; "
        "try: XDG_DATA_HOME, a folder that you can write to"
    )
    without = ("run", "app.py:Pickling", "--topology", "ring:2", "--snapshots", "1", *QUICK)
    mpsnap(*without, cwd=folder, env={"XDG_DATA_HOME": "/proc/nowhere"})


def test_who_only_looks_needs_no_key_and_asks_for_no_seal(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(folder, "app.py:Pickling", "--topology", "ring:2", snapshots=1)
    number = newest(folder / "kept")
    rewrite(folder / "kept" / f"snap-{number:08}" / MANIFEST, sealed_with(Key(b"another key, of somebody else's!")))
    (data / "mpsnap" / "key").chmod(0o644)
    monkeypatch.chdir(folder)
    for verb in (
        ("list", "kept"),
        ("show", "kept", str(number)),
        ("diff", "kept", "0", str(number)),
        ("verify", "kept"),
    ):
        assert main(verb) == 0, capsys.readouterr()
    (data / "mpsnap" / "key").unlink()
    assert main(("verify", "kept")) == 0
    assert os.listdir(data / "mpsnap") == []


def test_a_run_without_pickles_needs_no_key_and_makes_none(folder: Path, data: Path) -> None:
    begun(folder)
    mpsnap("resume", "kept", "--allow-pickle", "--duration", "0.2", cwd=folder)
    assert not data.exists()
    with DirectoryReader(folder / "kept") as store:
        assert all(store.manifest(number).seal is None for number in store.numbers())


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("class Holds", "class Held", "there is no 'Holds' in "),
        ("import os, signal", "import no_such_module", "No module named 'no_such_module'"),
        ("label: str", "title: str", "does not fit {folder}/app.py:Holds any more: "),
        ("label: str", "title: str", "Parcel no longer has the fields it was kept with: gone: 'label'; new: 'title'"),
        ("class Parcel", "class Packet", "does not fit {folder}/app.py:Holds any more: "),
        ("class Holds(Node)", "class Holds", "neither a subclass of mpsnap.Node nor a mapping"),
    ],
)
def test_a_program_that_has_changed_is_refused_with_the_difference(
    folder: Path, refused: Refused, old: str, new: str, fragment: str
) -> None:
    begun(folder, "app.py:Holds", "--topology", "ring:2")
    text = (folder / "app.py").read_text()
    assert old in text
    (folder / "app.py").write_text(text.replace(old, new))
    assert fragment.format(folder=folder) in refused("resume", "kept")


def test_an_app_that_is_gone_or_maps_other_classes_is_refused(folder: Path, refused: Refused) -> None:
    write(
        folder / "mapped.py",
        """
        from app import Idle, Holds
        nodes = {"N1": Idle, "*": Holds}
        """,
    )
    begun(folder, "mapped", "--topology", "ring:3")
    number = newest(folder / "kept")
    text = (folder / "mapped.py").read_text()
    (folder / "mapped.py").write_text(text.replace('"N1"', '"N2"'))
    assert refused("resume", "kept") == (
        f"snapshot {number} is of another cluster: N1 ran app:Idle and would run app:Holds, "
        "N2 ran app:Holds and would run app:Idle; try: the topology and the program that it was taken with"
    )
    (folder / "mapped.py").unlink()
    assert "there is no app 'mapped'" in refused("resume", "kept")


def test_a_script_and_a_folder_that_is_gone_cannot_be_gone_on_with(folder: Path, refused: Refused) -> None:
    (folder / "net.events").write_text("tick 60000\n")
    (folder / "work").mkdir()
    killed_in_the_middle(
        folder,
        *("run", "--events", "net.events", "--store", "kept", *QUICK),
        ready=lambda: newest(folder / "kept") >= 0,
    )
    assert refused("resume", "kept") == (
        f"{folder}/kept: this run follows the script net.events, and how far it had come is not kept; "
        "try: the script from its beginning, with another --store"
    )
    killed_in_the_middle(
        folder / "work",
        *("run", "--store", "../other", "--duration", "60", *QUICK),
        ready=lambda: newest(folder / "other") >= 0,
    )
    (folder / "work").rmdir()
    assert refused("resume", "other") == (
        f"{folder}/work: the run's folder cannot be entered: No such file or directory"
    )


def test_a_snapshot_that_a_program_has_taken_is_left_to_that_program() -> None:
    manifest: Any = SimpleNamespace(run={"seed": 0, "final": False}, number=3)
    with pytest.raises(InputError) as caught:
        complete(argparse.Namespace(), manifest, "kept")
    assert str(caught.value) == (
        "kept: snapshot 3 does not say how `run` would go on with it (app is not there); "
        "try: Cluster(..., resume=True), if a program of yours has taken it"
    )


# --- Chaos. ---


def test_chaos_is_decided_by_its_seed() -> None:
    def first(rates: Rates) -> list[Any]:
        return list(itertools.islice(blows(rates, ("N1", "N2", "N3")), 200))

    both = first(Rates(2, 1, 7))
    assert both == first(Rates(2, 1, 7))
    assert both != first(Rates(2, 1, 8))
    kills = [blow for blow in both if blow.stopped is None]
    assert 100 < len(kills) < 165, "two of three"
    assert {blow.node for blow in both} == {"N1", "N2", "N3"}
    assert all(blow.stopped is None or 0.05 <= blow.stopped <= 0.5 for blow in both)
    assert 0.25 < sum(blow.after for blow in both) / 200 < 0.42, "three a second"
    assert all(blow.stopped is None for blow in first(Rates(kill=1)))
    assert all(blow.stopped is not None for blow in first(Rates(stop=1)))


class Watched:
    """Stand in for a supervisor that only notes what is done to its nodes."""

    def __init__(self) -> None:
        self.state = "running"
        self.excused: set[str] = set()
        self.signals: list[tuple[str, int]] = []

        class Shape:
            nodes = ("N1", "N2", "N3")

        self.topology = Shape

    def signal(self, node: str, number: int) -> None:
        assert self.state == "running"
        self.signals.append((node, number))


def test_chaos_waits_while_nothing_runs_and_lets_everybody_go_on_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watched = Watched()
    told: list[str] = []
    chaos = Chaos(watched, Rates(stop=1, seed=1), told.append)  # type: ignore[arg-type]
    (first, second) = itertools.islice(blows(Rates(stop=1, seed=1), watched.topology.nodes), 2)
    assert chaos.due == float("inf")
    chaos.act()
    assert chaos.due == now + first.after
    watched.state = "recovering"
    now += 1000
    chaos.act()
    assert chaos.due == float("inf")
    watched.state = "running"
    chaos.act()
    assert chaos.due == now + first.after, "no debt of blows"
    now += first.after
    chaos.act()
    assert watched.signals == [(first.node, signal.SIGSTOP)]
    assert watched.excused == {first.node}
    assert first.stopped is not None
    assert chaos.due == now + min(first.stopped, second.after)
    chaos.end()
    assert watched.signals[1:] == [(first.node, signal.SIGCONT)]
    assert watched.excused == set()
    assert told == [f"chaos stops {first.node} for {first.stopped:.2f} s"]


def test_a_run_goes_on_under_chaos_and_no_token_is_lost(folder: Path) -> None:
    """More deaths than the budget of restarts has: those that are meant cost nothing of it."""
    given = ("--topology", "complete:3", "--store", "kept", "--chaos", "kill=6,stop=3,seed=5", "--restarts", "0")
    taken = ("--snapshots", "40", "--invariant", "mpsnap.apps.tokens:conserved", "--format", "json", *QUICK)
    done = mpsnap("run", *given, *taken, "--snapshot-every", "0.03", cwd=folder)
    facts = done.document["run"]
    killed = len(re.findall("chaos kills N[123]$", done.stderr, re.MULTILINE))
    # Two that are killed before the first is missed are one death.
    assert 1 <= len(facts["deaths"]) == len(facts["recoveries"]) <= killed


def test_a_node_that_others_have_stopped_hangs_and_is_replaced(folder: Path) -> None:
    """A stopped process answers no question; the deadline of hooks finds it too."""
    what = ("app.py:Idle", "--topology", "ring:2", "--store", "kept", "--handler-deadline", "0.2")
    how = ("--snapshot-every", "0.05", "--duration", "60", "--quiet", *QUICK)
    with under_way("run", *what, *how, cwd=folder) as started:
        wait_until(lambda: newest(folder / "kept") >= 1, "a snapshot", 30)
        victim = psutil.Process(started.pid).children()[0]
        victim.suspend()
        wait_until(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE, "its end", 30)
        wait_until(lambda: (folder / "kept" / "incarnation-1").exists(), "the next incarnation", 30)
        started.send_signal(signal.SIGINT)
        stdout, stderr = started.communicate(timeout=60)
    assert started.returncode == 130, stderr
    assert "1 death, 1 recovery, " in stdout


# --- The help. ---


def test_the_examples_of_resume_are_true(folder: Path) -> None:
    text = mpsnap("resume", "--help", cwd=folder).stdout
    shown = [line.strip() for line in text.partition("examples:\n")[2].splitlines()]
    assert len(shown) == 3
    for example in shown:
        for name in ("kept", "go"):
            run(f"rm -rf {name}", cwd=folder)
        begun(folder, snapshots=4)
        command = example.partition("#")[0].replace("python", sys.executable, 1)
        done: Done = run(f"{command} --duration 0.2", cwd=folder)
        assert done.status == 0, f"{example}: {done.stderr}"
