"""What the command line does with input that is wrong: one line that names the place, an exit status, nothing else.

The first half is bad usage, found before anything starts: exit 2. It runs in this process, where starting a cluster is
forbidden. The second half fails while it runs: exit 3, in a process of its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_harness import QUICK, Done, mpsnap, run, write

from mpsnap.cli import main
from mpsnap.runtime.supervisor import Supervisor

#: Runs one command in this process that must be refused, and returns the line that says why.
Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Refused]:
    """Give a command a folder of its own, forbid it to start anything, and let it leave no module imported."""

    def start(self: Supervisor) -> None:
        pytest.fail("a cluster is started")

    monkeypatch.setattr(Supervisor, "start", start)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def refuse(*arguments: str) -> str:
        status: object
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
        stdout, stderr = capsys.readouterr()
        assert (status, stdout) == (2, ""), stderr
        assert stderr.startswith("mpsnap: error: ")
        assert stderr.endswith("\n")
        line = stderr[:-1]
        assert line.isprintable(), "one line, and nothing in it that steers a terminal"
        assert len(line) < 600
        return line

    yield refuse
    for name in set(sys.modules) - before:
        del sys.modules[name]


# --- Verbs and options. ---


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["no verb is given", "python -m mpsnap --help"]),
        (["rum"], ["'rum'", "run"]),
        (["tokens"], ["'tokens'", "run"]),
        (["--verbose"], ["there is no option --verbose"]),
        (["snaphot"], ["there is no verb 'snaphot'", "try: snapshot"]),
        (["xyz"], ["there is no verb 'xyz'", "try: python -m mpsnap --help"]),
        (["run", "--topolgy", "ring:3"], ["there is no option --topolgy", "try: --topology"]),
        (["run", "--snapshot", "3"], ["there is no option --snapshot;", "try: --snapshot"]),
        (["run", "--formt=json"], ["there is no option --formt=json", "try: --format"]),
        (["run", "--xyz"], ["there is no option --xyz", "try: python -m mpsnap run --help"]),
        (["run", "--x\x1b[2J\n"], [r"there is no option --x\x1b[2J\n"]),
        (["run", "tokens", "bank"], ["'bank' is one argument too many"]),
        (["run", "--format", "yaml"], ["--format", "'yaml'", "json"]),
        (["run", "--start-method", "thread"], ["--start-method", "'thread'", "forkserver"]),
        (["run", "--topology"], ["--topology", "expected one argument"]),
        (["run", "--param", "tokens"], ["--param", "'tokens' is not of the form name=value"]),
        (["run", "--param", "=3"], ["--param", "'=3' is not of the form name=value"]),
        (["run", "--param", "a b=3"], ["--param", "'a b=3' is not of the form name=value"]),
        (["run", "--param", "tkens=3"], ["no node takes a parameter 'tkens'", "'tokens'"]),
        (["run", "--param", "tokens=-1"], ["--param tokens", "a whole number >= 0, not -1"]),
        (["run", "--param", "tokens=1.5"], ["--param tokens", "not 1.5"]),
        (["run", "--param", "tokens=true"], ["--param tokens", "not True"]),
        (["run", "--param", "tokens=many"], ["--param tokens", "not 'many'"]),
        (["run", "--param", "tokens=" + 10_000 * "["], ["--param tokens", "not '[[["]),
        (["run", "wordcount"], ["needs a parameter 'files'", "--param files=..."]),
        (["run", "--initiator", "N9"], ["--initiator N9", "no node 'N9'", "N1, N2, N3, N4"]),
        (["run", "--initiator", "n1"], ["--initiator n1", "no node 'n1'", "try: N1"]),
        (["run", "--initiator", "N1", "--initiator", "N2,N1,x"], ["--initiator N2,N1,x", "no node 'x'"]),
        (["run", "--initiator", "N1,"], ["--initiator N1,", "no node ''"]),
        (["run", "--initiator", ""], ["--initiator", "no node ''"]),
        (["run", "--invariant", "conserved"], ["--invariant conserved", "module:name"]),
        (["run", "--invariant", "no_such_module:f"], ["--invariant", "there is no module no_such_module"]),
        (["run", "--invariant", "mpsnap.apps.bank:audi"], ["--invariant", "no 'audi'", "did you mean 'audit'?"]),
        (["run", "--invariant", "mpsnap.apps.bank:ACCOUNTS"], ["--invariant", "of type int, not a function"]),
        (["run", "--invariant", "mpsnap:__version__"], ["--invariant", "of type str, not a function"]),
        (["run", "bank", "--format", "snap"], ["--format snap is for the tokens app, not for bank"]),
        (["run", "pingpong", "--format", "snap"], ["--format snap", "pingpong"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else None,
)
def test_a_command_that_is_wrong_is_refused_by_name(
    refused: Refused, arguments: list[str], fragments: list[str]
) -> None:
    line = refused(*arguments)
    for fragment in fragments:
        assert fragment in line


@pytest.mark.parametrize("option", ["--duration", "--snapshot-every", "--timeout"])
@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e400", "ten", "", "1_0", "٣", "0x1"])
def test_seconds_are_positive_and_finite(refused: Refused, option: str, text: str) -> None:
    line = refused("run", option, text)
    assert f"argument {option}: {text!r} is not a positive number of seconds" in line


@pytest.mark.parametrize("option", ["--snapshots", "--concurrent"])
@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1.0", "ten", "", "1_0", "٣", "007"])
def test_counts_are_whole_and_positive(refused: Refused, option: str, text: str) -> None:
    line = refused("run", option, text)
    assert f"argument {option}: must be a whole number" in line
    assert text in line


@pytest.mark.parametrize(
    ("option", "most"), [("--snapshots", 2**63 - 1), ("--seed", 2**63 - 1), ("--concurrent", 1000)]
)
def test_a_number_of_a_million_digits_is_refused_in_brief(refused: Refused, option: str, most: int) -> None:
    """Python would refuse to read it in words of its own, and to print it all would hide the reason."""
    assert f"argument {option}: must be at most {most}, not 999" in refused("run", option, 10**6 * "9")
    assert f"argument {option}: must be at most {most}, not {most + 1}" in refused("run", option, str(most + 1))


# --- Apps. ---

APP = """
    from mpsnap import Node
    class Good(Node):
        def setup(self, ctx, size): ...
    class BadForm(Node):
        default_topology = "rong:3"
    class BadType(Node):
        default_topology = 17
    class Stranger: ...
    def not_a_class(): ...
    """
APP_FILES = {
    **dict.fromkeys(["app.py", "sub/app.py", "my-app.py", "json.py"], APP),
    "mapping.py": """
        from app import Good
        empty = {}
        strange = {"*": 3}
        typo = {"*": "app:Goodd"}
        stray = {"N5": (Good, {"size": 1}), "*": (Good, {"size": 1})}
        """,
    "raises.py": "# a comment\nraise RuntimeError('of \\x1b[31mthis\\x1b[0m\\nand that')",
    "syntax.py": "# a\n# b\nclass Class(:",
    "needs.py": "import no_such_module",
    "exits.py": "import sys\nsys.exit(0)",
}


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("tokns", ["there is no app 'tokns'; did you mean 'tokens'?"]),
        ("token", ["there is no app 'token'; did you mean 'tokens'?"]),
        ("Bank", ["there is no app 'Bank'; did you mean 'bank'?"]),
        ("something", ["there is no app 'something'", "tokens, bank, pingpong, wordcount", "path/to/file.py:Class"]),
        ("", ["there is no app ''"]),
        (":", ["there is no app ':'"]),
        ("..", ["there is no app '..'"]),
        ("apps/", ["there is no app 'apps/'"]),
        ("app.py:", ["there is no app 'app.py:'"]),
        ("app:Good\n", [r"there is no 'Good\n' in app"]),
        ("no_such_module:Class", ["there is no module no_such_module"]),
        ("json.no_such_module:Class", ["there is no module json.no_such_module"]),
        ("no_such_file.py:Class", ["no_such_file.py: there is no such file"]),
        ("folder.py:Class", ["folder.py: there is no such file"]),
        ("sub/app:Good", ["there is no app 'sub/app:Good'", "try: sub/app.py:Good"]),
        ("app.py:Goood", ["no 'Goood'", "did you mean 'Good'?"]),
        ("app.py:not_a_class", ["not_a_class is neither a subclass of mpsnap.Node nor a mapping", "app.py"]),
        ("app.py:Stranger", ["Stranger is neither a subclass of mpsnap.Node nor a mapping", "app.py"]),
        ("app.py", ["app.py: there is no mapping `nodes`", "try: app.py:Good"]),
        ("json", ["json: there is no mapping `nodes`"]),
        ("json.py:Class", ["json.py", "json is the name of another module", "renaming the file"]),
        ("my-app.py:Class", ["my-app.py", "'my-app' cannot be the name of a module", "renaming the file"]),
        ("raises.py:Class", ["raises.py:2: ", r"RuntimeError: of \x1b[31mthis\x1b[0m\nand that"]),
        ("syntax.py:Class", ["syntax.py:3: ", "SyntaxError: "]),
        ("needs.py:Class", ["needs.py:1: ", "No module named 'no_such_module'"]),
        ("exits.py:Class", ["exits.py:2: ", "SystemExit: 0"]),
        ("encoding.py:Class", ["encoding.py", "SyntaxError"]),
        ("nul.py:Class", ["nul.py"]),
        ("app.py:Good", ["needs a parameter 'size'", "--param size=..."]),
        ("app.py:BadForm", ["default_topology of app.py:BadForm: unknown topology 'rong'", "ring"]),
        ("app.py:BadType", ["default_topology of app.py:BadType", "17"]),
        ("mapping.py:empty", ["node N1 has no program"]),
        ("mapping.py:strange", ["3 is neither a Node class nor an import string"]),
        ("mapping.py:typo", ["there is no 'Goodd' in app", "did you mean 'Good'?"]),
        ("mapping.py:stray", ["no node of complete:4 is called 'N5'"]),
    ],
)
def test_an_app_that_cannot_be_had_is_named(refused: Refused, tmp_path: Path, name: str, fragments: list[str]) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "folder.py").mkdir()
    for name_of_file, text in APP_FILES.items():
        write(tmp_path / name_of_file, text)
    (tmp_path / "encoding.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "nul.py").write_bytes(b"x = 1\0\n")
    sys.path.append(str(tmp_path))
    line = refused("run", name)
    for fragment in fragments:
        assert fragment in line


def test_an_invariant_in_the_file_of_the_app_is_no_second_module(refused: Refused, tmp_path: Path) -> None:
    """The path of one is made absolute and so must be that of the other; what is refused here is the next thing."""
    write(tmp_path / "app.py", "from mpsnap import Node\nclass A(Node): ...\ndef check(snapshot): ...")
    assert "--initiator x" in refused("run", "app.py:A", "--invariant", "app.py:check", "--initiator", "x")


# --- Topologies and scripts. ---


@pytest.mark.parametrize(
    ("data", "line", "fragment"),
    [
        (b"", 1, "expected the number of nodes"),
        (b"# nothing\n\n", 1, "no lines but comments"),
        (b"\xef\xbb\xbf1\nA 1", 1, "byte order mark (BOM) of UTF-8"),
        (b"\xff\xfe1\0", 1, "byte order mark (BOM) of UTF-16"),
        (b"1\nA\0 1", 2, "NUL"),
        (b"1\nA 1 # \xe4", 2, "not UTF-8"),
        (b"one\nA 1", 1, "the number of nodes must be a whole number >= 1, not 'one'"),
        (b"0", 1, "the number of nodes must be a whole number >= 1, not 0"),
        (b"1\nA -1", 2, "the tokens of node 1 of 1 must be a whole number >= 0, not '-1'"),
        (b"1\nA 1.5", 2, "not '1.5'"),
        (b"1\nA", 2, "expected `name tokens`, node 1 of 1; found 'A'"),
        (b"1\nA/B 1", 2, "a node's name must be"),
        (b"2\nA 1\nA 1", 3, "node A stands twice, first in line 2"),
        (b"3\nA 1\nB 1\nA B", 4, "the tokens of node 3 of 3"),
        (b"3\nA 1\nB 1", 3, "the file ends after 2 of 3 node lines"),
        (b"1\nA 1\nB 1", 3, "a larger number in the first line"),
        (b"2\nA 1\nB 1\nA C", 4, "channel A->C needs 'C', which is not a node"),
        (b"2\nA 1\nB 1\nA B\nA B", 5, "channel A->B stands twice, first in line 4"),
        (b"2\nA 1\nB 1\nB B", 4, "channel B->B joins a node with itself"),
        (b"2\nA 1\nB 1\nA B 3", 4, "expected `src dst`, a channel; found 'A B 3'"),
    ],
)
def test_topology_files_are_refused_at_the_line(
    refused: Refused, tmp_path: Path, data: bytes, line: int, fragment: str
) -> None:
    (tmp_path / "bad.top").write_bytes(data)
    said = refused("run", "--topology", "bad.top")
    assert f"error: bad.top:{line}: " in said
    assert fragment in said


@pytest.mark.parametrize(
    ("spec", "fragment"),
    [
        ("rong:3", "unknown topology 'rong'"),
        ("ring", "this is not of the form ring:N; try: ring:4"),
        ("ring:", "ring:: N must be"),
        ("ring:0", "N must be a whole number >= 1, not 0"),
        ("ring:-1", "not '-1'"),
        ("ring:1e3", "not '1e3'"),
        ("ring:3:4", "this is not of the form ring:N"),
        ("ring:1000001", "at most 1000000"),
        ("grid:2", "this is not of the form grid:RxC; try: grid:2x3"),
        ("grid:2x", "C must be a whole number >= 1, not ''"),
        ("random:9:2:1", "P must be a number from 0 to 1"),
        ("random:9:nan:1", "P must be a number from 0 to 1"),
        ("complete:100000", "9,999,900,000 channels"),
        ("ring:\x1b[2J", r"ring:\x1b[2J: N must be"),
    ],
)
def test_specifications_are_refused_whole(refused: Refused, spec: str, fragment: str) -> None:
    assert fragment in refused("run", "--topology", spec)


def test_a_topology_that_is_no_file_is_told_with_the_forms(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "none.top: cannot be read: No such file" in refused("run", "--topology", "none.top")
    assert "try: ring:N, biring:N," in refused("run", "--topology", "none")
    assert "error: '': cannot be read" in refused("run", "--topology", "")
    assert "folder: cannot be read: Is a directory" in refused("run", "--topology", "folder")


def test_a_file_is_refused_by_its_size_before_it_is_parsed(refused: Refused, tmp_path: Path) -> None:
    """Also one that never ends, such as a device."""
    with open(tmp_path / "huge.top", "wb") as file:
        file.truncate((64 << 20) + 1)
    for name in ("huge.top", "/dev/zero"):
        assert f"{name}: the file has more than the 67,108,864 bytes" in refused("run", "--topology", name)
    assert "/dev/zero: the file has more than" in refused("run", "--events", "/dev/zero")


def test_more_nodes_than_the_machine_can_hold_are_refused_with_numbers(refused: Refused, tmp_path: Path) -> None:
    names = [f"n{k}" for k in range(100_000)]
    (tmp_path / "big.top").write_text("\n".join(["100000", *(f"{name} 1" for name in names)]))
    line = refused("run", "--topology", "big.top")
    assert re.search(r"100000 node.* \d+ ", line)
    assert "try: " in line


@pytest.mark.parametrize(
    ("data", "line", "fragment"),
    [
        (b"", 1, "the script has no steps"),
        (b"\xef\xbb\xbftick", 1, "byte order mark"),
        (b"tick\nti\0ck", 2, "NUL"),
        (b"tick\n\xff", 2, "not UTF-8"),
        (b"tick\nsned A B 1", 2, "unknown step 'sned'; try: send"),
        (b"send A B", 1, "expected `send SRC DST N`"),
        (b"send A X 1", 1, "there is no node 'X'"),
        (b"send B A 1", 1, "there is no channel B->A"),
        (b"send A B -1", 1, "the tokens to send must be a whole number >= 1, not '-1'"),
        (b"send A B 9", 1, "A can never hold 9 tokens: all nodes together have 8"),
        (b"snapshot", 1, "expected `snapshot NODE`"),
        (b"snapshot a", 1, "there is no node 'a'; try: A"),
        (b"tick 1 2", 1, "expected `tick [N]`"),
        (b"tick soon", 1, "the ticks must be a whole number"),
    ],
)
def test_scripts_are_refused_at_the_line(
    refused: Refused, tmp_path: Path, data: bytes, line: int, fragment: str
) -> None:
    (tmp_path / "pair.top").write_bytes(b"2\nA 5\nB 3\nA B")
    (tmp_path / "bad.events").write_bytes(data)
    said = refused("run", "--topology", "pair.top", "--events", "bad.events")
    assert f"error: bad.events:{line}: " in said
    assert fragment in said


def test_a_script_counts_the_tokens_of_the_parameter(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a.events").write_text("send N1 N2 3")
    line = refused("run", "--events", "a.events", "--param", "tokens=0")
    assert "a.events:1: N1 can never hold 3 tokens: all nodes together have 0" in line


def test_only_an_app_that_takes_commands_takes_a_script(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a.events").write_text("tick")
    assert "bank takes no commands" in refused("run", "bank", "--events", "a.events")
    assert "none.events: cannot be read: No such file" in refused("run", "--events", "none.events")
    assert "error: '': cannot be read" in refused("run", "--events", "")


def test_places_to_write_to_are_tried_before_anything_starts(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for out in ("file", "file/below", "", "/proc/folder"):
        assert f"error: {out or repr(out)}: cannot be made: " in refused("run", "--out", out)
    for emit in ("folder", "missing/file", "file/below", ""):
        assert f"error: {emit or repr(emit)}: cannot be written: " in refused("run", "--emit", emit)


# --- Help. ---


def help_of(*verbs: str, cwd: Path) -> str:
    done = mpsnap(*verbs, "--help", cwd=cwd)
    assert done.stderr == ""
    return done.stdout


def examples(text: str) -> list[str]:
    """Return the commands at the end of a help text, which must be the last thing in it."""
    *_, last = re.split(r"^examples?:\n", text, flags=re.MULTILINE)
    lines = last.splitlines()
    assert lines
    assert all(line.startswith("  python -m mpsnap run") for line in lines)
    return [line.strip() for line in lines]


def test_help_ends_with_examples(tmp_path: Path) -> None:
    top, verb = help_of(cwd=tmp_path), help_of("run", cwd=tmp_path)
    assert len(examples(top)) == 1
    assert len(examples(verb)) >= 4
    for status in (0, 1, 2, 3, 130):
        assert re.search(rf"^  {status} +\w", top, re.MULTILINE)
    assert mpsnap("--version", cwd=tmp_path).stdout.startswith("mpsnap ")


@pytest.mark.processes
def test_examples_of_the_help_are_true(tmp_path: Path) -> None:
    """Each runs as it stands there, only shorter."""
    (tmp_path / "path" / "to").mkdir(parents=True)
    write(
        tmp_path / "path" / "to" / "file.py",
        """
        from mpsnap import Node
        class MyNode(Node):
            def setup(self, ctx, size):
                self.size = size
        """,
    )
    shown = [*examples(help_of(cwd=tmp_path)), *examples(help_of("run", cwd=tmp_path))]
    for example in shown:
        command, hash_mark, comment = example.replace("python -m mpsnap", "mpsnap", 1).partition("#")
        short = command.replace("mpsnap", f"{sys.executable} -m mpsnap", 1) + " --duration 0.3 --snapshot-every 0.1"
        done = run(f"{short} {hash_mark}{comment}", cwd=tmp_path)
        assert done.status == 0, f"{short}: {done.stderr}"
        assert "Snapshot 0 from " in done.stdout or "> run.json" in example
    assert (tmp_path / "run.json").read_text().startswith('{"run": {')


# --- Failures while it runs. ---

FAILING = """
    import os, signal, sys, threading
    from mpsnap import Node

    class InSetup(Node):
        def setup(self, ctx):
            raise RuntimeError("no \\x1b[31mred\\x1b[0m\\r here\\nsecond line")  # InSetup

    class InMessage(Node):
        def on_idle(self, ctx):
            ctx.broadcast(1)
        def on_message(self, ctx, sender, payload):
            return payload / 0  # InMessage

    class InStop(Node):
        def on_stop(self, ctx):
            raise ValueError("at the end")  # InStop

    class Lock(Node):
        def setup(self, ctx):
            self.lock = threading.Lock()

    class Lambda(Node):
        def setup(self, ctx):
            self.table = {"key": [0, lambda: 1]}

    class LateLock(Node):
        def on_idle(self, ctx):
            self.lock = threading.Lock()

    class Message(Node):
        def on_idle(self, ctx):
            ctx.send(ctx.outbound[0], {"deep": (0, object())})  # Message

    class Exit(Node):
        def on_idle(self, ctx):
            sys.exit(0)  # Exit

    class Death(Node):
        def on_idle(self, ctx):
            os._exit(7)

    class Crash(Node):
        def on_idle(self, ctx):
            os.abort()

    class Stopped(Node):
        def on_idle(self, ctx):
            if ctx.name == "N2":
                os.kill(os.getpid(), signal.SIGSTOP)
    """


def fail(tmp_path: Path, name: str, *options: str) -> Done:
    """Run one of the failing nodes, whose document must be whole, and its error told once as text and as fields."""
    write(tmp_path / "failing.py", FAILING)
    done = mpsnap(
        "run",
        f"failing.py:{name}",
        "--topology",
        "ring:3",
        "--format",
        "json",
        *QUICK,
        *options,
        cwd=tmp_path,
        status=3,
    )
    error = done.document["error"]
    assert set(error) == {"what", "where", "try"}
    for part in error.values():
        assert part is None or (part in done.error and part.isprintable())
    assert all(line.isprintable() for line in done.stderr.splitlines())
    return done


def place_of(name: str) -> str:
    lines = FAILING.strip("\n").splitlines()
    return f"failing.py:{1 + next(k for k, line in enumerate(lines) if line.endswith(f'# {name}'))}"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "phase", "fragments"),
    [
        ("InSetup", "failed in setup", [r"RuntimeError: no \x1b[31mred\x1b[0m"]),
        ("InMessage", "failed in on_message", ["ZeroDivisionError: division by zero"]),
        ("InStop", "failed in on_stop", ["ValueError: at the end"]),
        ("Message", "failed in on_idle", ["deep[1]", "object cannot be kept exactly", "try: "]),
        ("Exit", "failed in on_idle", ["SystemExit: 0"]),
    ],
)
def test_a_node_that_fails_is_told_with_its_phase_and_line(
    tmp_path: Path, name: str, phase: str, fragments: list[str]
) -> None:
    done = fail(tmp_path, name, "--duration", "0.3", "--quiet")
    assert done.stderr.count("\n") == 1, "one line, even of an error that has several"
    assert re.search(rf"/{place_of(name)}: N[123] {phase}: ", done.error)
    for fragment in fragments:
        assert fragment in done.error


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "place", "kind"), [("Lock", "state.lock", "_thread.lock"), ("Lambda", "state.table.key[1]", "function")]
)
def test_a_state_that_cannot_be_kept_shows_before_the_first_message(
    tmp_path: Path, name: str, place: str, kind: str
) -> None:
    done = fail(tmp_path, name, "--quiet")
    assert done.stderr.count("\n") == 1
    assert re.search(rf"N[123]: {re.escape(place)}: N[123] failed in capture: .*type {kind} cannot be kept", done.error)
    assert "transient = " in done.error
    assert done.document["run"]["messages_sent"] == 0


@pytest.mark.processes
def test_a_state_that_can_no_longer_be_kept_costs_the_snapshot(tmp_path: Path) -> None:
    """The nodes go on; the run says that a snapshot did not complete."""
    done = fail(tmp_path, "LateLock", "--snapshots", "9")
    # On a busy machine the first one may come before the nodes have the lock.
    refused = re.search(r"N\d: state.lock: snapshot (\d+) .* could not be captured", done.error)
    assert refused is not None
    assert int(refused[1]) not in [snapshot["number"] for snapshot in done.document["snapshots"]]


@pytest.mark.processes
@pytest.mark.parametrize(("name", "status"), [("Death", "exit status 7"), ("Crash", "killed by SIGABRT")])
def test_a_node_that_dies_without_a_word_is_told_with_its_status(tmp_path: Path, name: str, status: str) -> None:
    done = fail(tmp_path, name)
    assert re.search(rf"^N[123] died in on_idle: {status}$", done.error)


@pytest.mark.processes
def test_a_node_that_does_not_come_back_is_what_the_snapshot_waits_for(tmp_path: Path) -> None:
    """It is stopped by a signal, so that only another one ends it."""
    # Half a second after the start, so that it has certainly come to its hook.
    timing = ("--snapshot-every", "0.5", "--snapshots", "1", "--timeout", "0.3", "--initiator", "N1")
    done = fail(tmp_path, "Stopped", *timing)
    assert re.search(r"^N2: snapshot 0 .* within 0.3 s: N2 does not answer \(in on_idle, for [\d.]+ s\)", done.error)
    assert "N1 awaits the marker on N3->N1; N3 has not recorded" in done.error


@pytest.mark.processes
def test_a_death_is_the_error_and_not_the_snapshots_it_takes_with_it(tmp_path: Path) -> None:
    """With snapshots open all the time, what is told is the cause; only --debug shows the traceback."""
    crowded = ("--snapshots", "1000", "--concurrent", "5", "--quiet")
    told = [fail(tmp_path, "InMessage", *crowded), fail(tmp_path, "InMessage", *crowded, "--debug")]
    for done in told:
        assert re.search(rf"/{place_of('InMessage')}: N[123] failed in on_message: ZeroDivisionError", done.error)
    plain, debug = (done.stderr for done in told)
    assert "Traceback" not in plain
    assert "Traceback (most recent call last)" in debug
    assert "return payload / 0  # InMessage" in debug


@pytest.mark.processes
def test_a_place_that_cannot_be_written_to_ends_the_run_by_name(tmp_path: Path) -> None:
    (tmp_path / "out" / "0.txt").mkdir(parents=True)
    done = mpsnap("run", "--out", "out", "--snapshots", "2", *QUICK, cwd=tmp_path, status=3)
    assert done.error == "out/0.txt: cannot be written: Is a directory"
    done = mpsnap(
        *("run", "pingpong", "--duration", "0.1", "--emit", "/dev/full", "--format", "json", *QUICK),
        cwd=tmp_path,
        status=3,
    )
    assert done.error == "/dev/full: cannot be written: No space left on device"
    assert done.document["error"] == {
        "what": "cannot be written: No space left on device",
        "where": "/dev/full",
        "try": None,
    }
    command = f"{sys.executable} -m mpsnap run --snapshots 2 --quiet --start-method fork > /dev/full"
    for form in ("table", "json", "snap"):
        done = run(f"{command} --format {form}", cwd=tmp_path)
        assert (done.status, done.stderr) == (3, "mpsnap: error: stdout: cannot be written: No space left on device\n")
