"""`mpsnap top`: watch a run on a screen that is refreshed in place, or line by line where there is none.

This module owns the terminal: it is given back as it was found, whatever ends the watching. What is drawn is made in
`mpsnap.views.screen`. Three threads share the work, so that no run that is slow to answer keeps the keys waiting: this
one draws and reads keys, one listens to the run, one asks it for what keys are pressed for. Only this one touches
curses.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from mpsnap.cli.control import add_run
from mpsnap.cli.options import add_verb, positive, seconds
from mpsnap.cli.show import Result, write_out
from mpsnap.core.errors import ClusterError, InputError, MpsnapError
from mpsnap.server import client
from mpsnap.views.running import digest_line, status_text
from mpsnap.views.screen import (
    BAD,
    FAINT,
    GOOD,
    SELECTED,
    SORTS,
    STRONG,
    TITLE,
    WARNING,
    Chosen,
    Known,
    Piece,
    in_order,
    screen,
)

if TYPE_CHECKING:
    import curses

#: Seconds between two looks: by default, and at least.
DEFAULT_EVERY, LEAST_EVERY = 1.0, 0.1
#: Seconds between two drawings for what happens in the run; keys do not wait.
_DRAW_SECONDS = 0.1
#: Seconds between two questions why; the answer costs every node a little.
_WHY_SECONDS = 2.0
#: Seconds for an answer, for a message to be read, and without any news until that is told.
_ASK_SECONDS, _READ_SECONDS, _OLD_SECONDS = 10.0, 5.0, 3.0
#: Snapshots that are kept between two statuses.
_SNAPSHOTS = 200
#: Channels of each block of lines.
_CHANNELS = 6
#: Looks in a row at a terminal that says there are keys and gives none: it is gone.
_EMPTY_LOOKS = 100

EXAMPLES = """\
keys: q quit, s S snapshot, p pause, o sort, n c w show or hide, h help

Where there is no terminal it prints lines, a block every --every seconds.

examples:
  python -m mpsnap top
  python -m mpsnap top --run tokens-4711 --every 0.5
  python -m mpsnap top --count 3 | cat
  python -m mpsnap top --format json --count 10 > run.jsonl
"""


def add_verbs(verbs: Any) -> None:
    """Add the verb to the command line."""
    what = "Watch a run: its nodes, rates, backlogs and snapshots, refreshed in place."
    parser = add_verb(verbs, "top", "watch a run on a live screen", description=what, examples=EXAMPLES)
    help_ = f"seconds between two looks (default {DEFAULT_EVERY:g}, at least {LEAST_EVERY:g})"
    parser.add_argument("--every", type=seconds, default=DEFAULT_EVERY, metavar="S", help=help_)
    parser.add_argument("--count", type=positive, metavar="N", help="end after N looks")
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="json: a status document a line, and no screen"
    )
    add_run(parser)
    parser.set_defaults(carry_out=carry_out)


def carry_out(options: argparse.Namespace) -> Result:
    """Watch until the watcher or the run ends it.

    Raises:
        InputError: There is no such run.
        ClusterError: The run is gone without a word.
    """
    if options.every < LEAST_EVERY:
        raise InputError(f"{options.every:g} s is too often", where="--every", hint=f"--every {LEAST_EVERY:g}")
    run = client.find_run(options.run)
    drawing = _drawing() if options.format == "table" else None
    if drawing is None:
        return _print_lines(options, run)
    top = Top(options, run, drawing)
    ended, interrupted = top.watch()
    return _told_of_end(options, run, ended) if ended is not None else Result(None, interrupted)


def _print_lines(options: argparse.Namespace, run: client.Run) -> Result:
    looks = 0
    with client.Client(run) as watched:
        for kind, value in watched.watch(options.every):
            if kind == "end":
                return _told_of_end(options, run, value)
            if kind == "status":
                as_json = options.format == "json"
                write_out((json.dumps(value) if as_json else status_text(value, channels=_CHANNELS)) + "\n")
                looks += 1
                if looks == options.count:
                    break
    return Result(None, False)


def _told_of_end(options: argparse.Namespace, run: client.Run, end: Mapping[str, Any]) -> Result:
    error = end.get("error")
    if error is not None:
        return Result(ClusterError(error["what"], where=error.get("where"), hint=error.get("try")), False)
    if not options.quiet:
        print(f"mpsnap: the run {run.name} has ended", file=sys.stderr, flush=True)
    return Result(None, False)


def _drawing() -> ModuleType | None:
    """Return the module that can draw on the terminal; None if there is no terminal or none that can be drawn on."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") in ("", "dumb"):
        return None
    try:
        import curses

        # curses would end the process if there is no description of the terminal.
        curses.setupterm(fd=sys.stdout.fileno())
        return curses if curses.tigetstr("cup") and curses.tigetstr("clear") else None
    except (ImportError, curses.error):
        return None


class Top:
    """Watch a run on the whole screen of a terminal.

    Args:
        options: Of the verb.
        run: Which one.
        drawing: The module curses.
    """

    def __init__(self, options: argparse.Namespace, run: client.Run, drawing: ModuleType) -> None:
        self._options = options
        self._run = run
        self._curses = drawing
        self._chosen = Chosen()
        self._status: dict[str, Any] | None = None
        self._status_at = time.monotonic()
        self._why: Mapping[str, Any] | None = None
        #: When why was asked, and whether the answer is still to come.
        self._why_at = 0.0
        self._why_asked = False
        self._message_at = 0.0
        self._looks = 0
        #: What threads have heard, and what is to be asked.
        self._news: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._questions: SimpleQueue[tuple[str, dict[str, Any]]] = SimpleQueue()
        #: Threads and signals write to the one end, so that the loop wakes at the other.
        self._wake, self._bell = socket.socketpair()
        self._resized = False
        self._interrupted = False
        self._quit = False
        self._end: Mapping[str, Any] | None = None
        self._gone: MpsnapError | None = None
        self._empty_looks = 0
        self._keys = self._actions()

    def watch(self) -> tuple[Mapping[str, Any] | None, bool]:
        """Watch until somebody has enough of it; return the end of the run if that was it, and whether a signal was.

        Raises:
            MpsnapError: The run is gone without a word.
        """
        self._wake.setblocking(False)
        self._bell.setblocking(False)
        with self._wake, self._bell, self._signals(), self._terminal() as window:
            # They end with this process: what they wait for may never come.
            threading.Thread(target=self._listen, name="listening", daemon=True).start()
            threading.Thread(target=self._ask_on, name="asking", daemon=True).start()
            self._loop(window)
        if self._gone is not None:
            raise self._gone
        return self._end, self._interrupted

    # -------------------------------------------------------------- the terminal

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let signals wake the loop, which does the work; those that would kill us would leave the screen as it is."""

        def on_end(number: int, frame: FrameType | None) -> None:
            self._interrupted = True

        def on_resize(number: int, frame: FrameType | None) -> None:
            self._resized = True

        handlers = {**dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), on_end), signal.SIGWINCH: on_resize}
        # Before curses, which takes those that nobody has taken.
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        woken = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[curses.window]:
        window = self._curses.initscr()
        try:
            self._curses.noecho()
            self._curses.cbreak()
            window.keypad(True)
            window.nodelay(True)
            # Else a lone Esc waits a second for what may follow.
            self._curses.set_escdelay(25)
            with contextlib.suppress(self._curses.error):
                self._curses.curs_set(0)
            self._looks_of = self._styles()
            yield window
        finally:
            window.keypad(False)
            self._curses.echo()
            self._curses.nocbreak()
            self._curses.endwin()

    def _styles(self) -> dict[int, int]:
        c = self._curses
        looks = {STRONG: c.A_BOLD, FAINT: c.A_DIM, TITLE: c.A_BOLD, SELECTED: c.A_REVERSE, BAD: c.A_BOLD}
        if not c.has_colors() or os.environ.get("NO_COLOR"):
            return looks
        c.start_color()
        background = -1
        try:
            c.use_default_colors()
        except c.error:
            background = c.COLOR_BLACK
        colours = {GOOD: c.COLOR_GREEN, WARNING: c.COLOR_YELLOW, BAD: c.COLOR_RED, TITLE: c.COLOR_CYAN}
        for pair, (look, colour) in enumerate(colours.items(), 1):
            c.init_pair(pair, colour, background)
            looks[look] = looks.get(look, c.A_NORMAL) | c.color_pair(pair)
        return looks

    def _draw(self, window: curses.window) -> None:
        rows, columns = window.getmaxyx()
        age = time.monotonic() - self._status_at
        old = age if age > max(_OLD_SECONDS, 3 * self._options.every) else None
        known = Known(self._run.name, self._status, self._why, old)
        # What stands there already is not sent again: curses compares.
        window.erase()
        for y, line in enumerate(screen(known, self._chosen, rows, columns)):
            x = 0
            for text, look in line:
                # It complains when the last cell of all is written, where the cursor has no place to go.
                with contextlib.suppress(self._curses.error):
                    window.addstr(y, x, text, self._looks_of.get(look, self._curses.A_NORMAL))
                x += len(text)
        window.refresh()

    def _resize(self, window: curses.window) -> None:
        self._resized = False
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        if rows > 0 and columns > 0:
            self._curses.resizeterm(rows, columns)
            window.clear()

    # ------------------------------------------------------------------ the loop

    def _loop(self, window: curses.window) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(sys.stdin, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            drawn, due, urgent = 0.0, True, True
            while not (self._quit or self._interrupted or self._end is not None or self._gone):
                now = time.monotonic()
                if due and (urgent or now >= drawn + _DRAW_SECONDS):
                    self._draw(window)
                    drawn, due, urgent = now, False, False
                found = selector.select(max(0.0, drawn + _DRAW_SECONDS - now) if due else 1.0)
                self._drain()
                if self._resized:
                    self._resize(window)
                    urgent = True
                if any(key.fileobj is sys.stdin for key, _ in found):
                    urgent = self._on_keys(window) or urgent
                # Without anything new it is drawn once a second, for the age of what is shown.
                due = self._on_news() or urgent or due or not found
                self._forget_message()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass

    def _ring(self) -> None:
        # A bell that is full rings already; one that is closed has nobody to hear it.
        with contextlib.suppress(OSError):
            self._bell.send(b"\0")

    def _on_news(self) -> bool:
        """Take in what threads have heard, and return whether there was anything."""
        heard = False
        while not self._news.empty():
            heard = True
            kind, value = self._news.get()
            if kind == "status":
                self._on_status(value)
            elif kind == "snapshot":
                self._on_digest(value)
            elif kind == "end":
                self._end = value
            elif kind == "gone":
                self._gone = value
            elif kind == "why":
                self._why, self._why_asked = value, False
            elif kind == "told":
                self._say(*value)
        return heard

    def _on_status(self, status: dict[str, Any]) -> None:
        self._status, self._status_at = status, time.monotonic()
        self._looks += 1
        if self._options.count is not None and self._looks > self._options.count:
            # The last one was to be seen until now.
            self._quit = True
        if self._chosen.why:
            self._ask_why()

    def _on_digest(self, digest: Mapping[str, Any]) -> None:
        if self._status is None:
            return
        snapshots = [known for known in self._status["snapshots"] if known["id"] != digest["id"]]
        if len(snapshots) == len(self._status["snapshots"]):
            snapshots.append(digest)
        else:
            snapshots = [digest if known["id"] == digest["id"] else known for known in self._status["snapshots"]]
        self._status = {**self._status, "snapshots": snapshots[-_SNAPSHOTS:]}

    def _say(self, text: str, look: int) -> None:
        self._chosen.message = Piece(text, look)
        self._message_at = time.monotonic()

    def _forget_message(self) -> None:
        if self._chosen.message.text and time.monotonic() - self._message_at > _READ_SECONDS:
            self._chosen.message = Piece("")

    # -------------------------------------------------------------------- threads

    def _listen(self) -> None:
        try:
            with client.Client(self._run) as watched:
                for news in watched.watch(self._options.every):
                    self._news.put(news)
                    self._ring()
        except MpsnapError as error:
            self._news.put(("gone", error))
        except Exception as error:
            self._news.put(("gone", MpsnapError(f"{type(error).__name__}: {error}")))
        self._ring()

    def _ask_on(self) -> None:
        while True:
            do, args = self._questions.get()
            try:
                with client.Client(self._run) as asked:
                    answer = asked.ask(do, args, seconds=_ASK_SECONDS)
                self._news.put(("why", answer) if do == "why" else ("told", (_answer_told(do, answer), GOOD)))
            except Exception as error:
                if do == "why":
                    self._news.put(("why", None))
                self._news.put(("told", (str(error), BAD)))
            self._ring()

    def _ask(self, do: str, args: dict[str, Any], saying: str) -> None:
        self._questions.put((do, args))
        self._say(saying, FAINT)

    def _ask_why(self) -> None:
        now = time.monotonic()
        if not self._why_asked and now - self._why_at >= _WHY_SECONDS:
            self._why_asked, self._why_at = True, now
            self._questions.put(("why", {}))

    # ----------------------------------------------------------------------- keys

    def _on_keys(self, window: curses.window) -> bool:
        """Do what keys were pressed for, and return whether there were any."""
        pressed = False
        while (key := window.getch()) != -1:
            pressed = True
            self._chosen.message = Piece("")
            if (action := self._keys.get(key)) is not None:
                action()
        self._empty_looks = 0 if pressed else self._empty_looks + 1
        if self._empty_looks > _EMPTY_LOOKS:
            self._interrupted = True
        return pressed

    def _actions(self) -> dict[int, Callable[[], None]]:
        c = self._curses
        many = 1_000_000
        moves = {
            **dict.fromkeys((c.KEY_UP, ord("k")), -1),
            **dict.fromkeys((c.KEY_DOWN, ord("j")), 1),
            c.KEY_PPAGE: -10,
            c.KEY_NPAGE: 10,
            c.KEY_HOME: -many,
            c.KEY_END: many,
        }
        actions: dict[int, Callable[[], None]] = {key: self._move_by(step) for key, step in moves.items()}
        for key, action in {
            "q": self._leave,
            "s": self._snapshot_here,
            "S": self._snapshot,
            "p": self._pause,
            "o": self._sort,
            "n": self._toggle("nodes"),
            "c": self._toggle("channels"),
            "w": self._show_why,
            "h": self._toggle("help"),
            "?": self._toggle("help"),
        }.items():
            actions[ord(key)] = action
        return actions

    def _leave(self) -> None:
        self._quit = True

    def _move_by(self, step: int) -> Callable[[], None]:
        def move() -> None:
            chosen, nodes = self._chosen, self._nodes()
            if chosen.help or chosen.why or not chosen.nodes:
                chosen.line = max(0, chosen.line + step)
            elif nodes:
                names = [node["name"] for node in nodes]
                at = names.index(chosen.selected) if chosen.selected in names else 0
                chosen.selected = names[max(0, min(at + step, len(names) - 1))]

        return move

    def _toggle(self, what: str) -> Callable[[], None]:
        def toggle() -> None:
            setattr(self._chosen, what, not getattr(self._chosen, what))
            self._chosen.line = 0

        return toggle

    def _show_why(self) -> None:
        self._toggle("why")()
        self._chosen.help = False
        if self._chosen.why:
            self._ask_why()

    def _sort(self) -> None:
        orders = list(SORTS)
        self._chosen.sort = orders[(orders.index(self._chosen.sort) + 1) % len(orders)]

    def _snapshot_here(self) -> None:
        node = self._selected()
        if node is not None:
            self._ask("snapshot", {"nodes": [node["name"]]}, f"asking for a snapshot from {node['name']}...")

    def _snapshot(self) -> None:
        self._ask("snapshot", {"nodes": []}, "asking for a snapshot...")

    def _pause(self) -> None:
        node = self._selected()
        if node is not None:
            do = "unpause" if node["paused"] else "pause"
            self._ask(do, {"nodes": [node["name"]]}, f"telling {node['name']} to {do}...")

    def _nodes(self) -> list[Mapping[str, Any]]:
        return [] if self._status is None else in_order(self._status["nodes"], self._chosen.sort)

    def _selected(self) -> Mapping[str, Any] | None:
        return next((node for node in self._nodes() if node["name"] == self._chosen.selected), None)


def _answer_told(do: str, answer: Mapping[str, Any]) -> str:
    if do == "snapshot":
        return digest_line(answer["digest"])
    return f"paused: {', '.join(answer['paused']) or 'no node'}"
