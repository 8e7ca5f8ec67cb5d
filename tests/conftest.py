"""What every test is held to, and what many of them need.

A test leaves nothing behind: no process, thread, descriptor, semaphore or file. The guard below looks after every test
and names what it finds. Tests never sleep; they wait for a state with `wait_until`, which is bounded.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import pytest
from chromium import chromium
from dashboard_browser import Visits, visiting
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A test that writes an app, runs it, and writes another one of the same size within the same second would get the first
# one again, compiled: Python tells them apart by size and second.
sys.dont_write_bytecode = True
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

T = TypeVar("T")

# Tests never depend on speed: on a busy machine an example may take seconds, or ten of them a second to be made.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

#: What the kernel and finalizers may take to clear away what a test has given up.
GRACE_SECONDS = 3.0
#: Part of every semaphore's name, so that ours can be told from those of other programs: these are called `mp-` and
#: eight random characters, which may well begin with the digits of our process.
SEMAPHORES = f"mpsnap-tests-{os.getpid()}"
#: The unlinked file of shared memory that multiprocessing keeps for its next `RawArray`.
ARENA = "/dev/shm/pym-"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="rewrite transcripts")
    parser.addoption(
        "--mutations", metavar="K/N", default="0/1", help="of the mutations, only every N-th, from the K-th on"
    )
    parser.addoption(
        "--spawned",
        metavar="K/N",
        default="0/1",
        help="of what is tried with spawn and forkserver too, only every N-th, from the K-th on",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Have no test, and nothing that one starts, make a key in the home of whoever runs the tests."""
    # Not when this module is imported, which processes of nodes do too.
    os.environ["XDG_DATA_HOME"] = folder = tempfile.mkdtemp(prefix="ms-data-")
    config.add_cleanup(functools.partial(shutil.rmtree, folder))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not asked for, of two kinds of tests that take long."""
    left_out: set[pytest.Item] = set()
    for option, is_one in (("--mutations", _is_mutation), ("--spawned", _is_spawned)):
        first, step = map(int, config.getoption(option).split("/"))
        them = list(filter(is_one, items))
        left_out |= set(them) - set(them[first::step])
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Leave what is imported and collected to itself, which no garbage collection need look through any more."""
    gc.collect()
    gc.freeze()


def _is_mutation(item: pytest.Item) -> bool:
    """Return whether this runs other tests, and tries these alone."""
    return item.name.startswith("test_without_this_rule_its_test_fails[")


def _is_spawned(item: pytest.Item) -> bool:
    """Return whether this is tried with a method with which each process, or each cluster, imports everything anew."""
    return not {"spawn", "forkserver"}.isdisjoint(re.split(r"[\[\]-]", item.name))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder where this test's runs are found; it is short, as the path of a socket has room for so much."""
    with tempfile.TemporaryDirectory(prefix="ms-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def wait_until(condition: Callable[[], T], what: str, seconds: float = 10.0) -> T:
    """Return what `condition` returns as soon as it is true; fail after so many seconds, saying what was waited for."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() >= deadline:
            pytest.fail(f"waited {seconds:g} s for {what}")
        pause.wait(0.005)
    return found


def is_dead(pid: int) -> bool:
    """Return whether a process has ended; whoever inherited it may not have reaped it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _start_method(method: str) -> Any:
    marks: list[pytest.MarkDecorator] = []
    if method == "fork":
        marks = [
            # Its time limit is kept by a signal, not by a thread, so that fork finds the one thread it needs.
            pytest.mark.timeout(60, method="signal"),
            # From 3.12 on Python counts the thread of faulthandler too, which holds no lock.
            pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
        ]
    if method not in multiprocessing.get_all_start_methods():
        marks.append(pytest.mark.skip(reason=f"there is no {method} here"))
    return pytest.param(method, marks=marks)


#: For `parametrize`, where a test is not to run with all of them.
FORK, FORKSERVER, SPAWN = map(_start_method, ("fork", "forkserver", "spawn"))


@pytest.fixture(params=[FORK, FORKSERVER, SPAWN])
def start_method(request: pytest.FixtureRequest) -> str:
    """Run the test once for each way to start a process."""
    return str(request.param)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a browser for the tests of one file, which are marked with its name."""
    with nothing_left_behind(), chromium() as started:
        yield started


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visits]:
    """Open the dashboard's page, and look in the end that it did nothing a page should not."""
    with visiting(browser) as visits:
        yield visits


@pytest.fixture(scope="session", autouse=True)
def _own_names() -> None:
    config: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config["semprefix"] = f"/{SEMAPHORES}"


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("browser") is not None:
        # A browser's processes come and go as it likes: `browser` looks once, behind the last test of a file.
        yield
        return
    with nothing_left_behind():
        yield


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fail if more is there in the end than in the beginning."""
    before = _belongings()
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    pause = threading.Event()
    while (left := _belongings() - before) and time.monotonic() < deadline:
        # An error that a test has caught holds its frames, and they hold it: what a snapshot there has open is closed
        # when that is found.
        gc.collect()
        pause.wait(0.01)
    if left:
        pytest.fail("the test has left behind: " + "; ".join(sorted(left)), pytrace=False)


def _belongings() -> set[str]:
    """Return in words everything that a test could leave behind."""
    return _processes() | _threads() | _descriptors() | _files()


def _processes() -> set[str]:
    kept = {
        getattr(forkserver._forkserver, "_forkserver_pid", None),
        getattr(resource_tracker._resource_tracker, "_pid", None),
    }
    return {f"process {pid} ({_command(pid)})" for pid in _descendants(os.getpid()) if pid not in kept}


def _descendants(pid: int) -> Iterator[int]:
    # psutil would look at every process of the machine, before and after every test.
    children: list[str] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                children += file.read().split()
    except OSError:  # it has just ended
        return
    for child in map(int, children):
        yield child
        yield from _descendants(child)


def _command(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{process.status()}: {' '.join(process.cmdline())[-200:]}"
    except psutil.Error:
        return "ended"


def _threads() -> set[str]:
    # The limits of tests are pytest's own.
    limits = "pytest_timeout "
    return {f"thread {t.name} ({t.ident})" for t in threading.enumerate() if not t.name.startswith(limits)}


def _descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the listing's own
            continue
        if not target.startswith(ARENA):
            found.add(f"descriptor {fd} ({target})")
    kept = {
        getattr(forkserver._forkserver, "_forkserver_alive_fd", None),
        getattr(resource_tracker._resource_tracker, "_fd", None),
    }
    return {text for text in found if not any(text.startswith(f"descriptor {fd} ") for fd in kept)}


def _files() -> set[str]:
    ours = f"sem.{SEMAPHORES}-", f"pym-{os.getpid()}-"
    shared = {name for name in os.listdir("/dev/shm") if name.startswith(ours)}
    staged = {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("mpsnap-")}
    return {f"/dev/shm/{name}" for name in shared} | {f"{tempfile.gettempdir()}/{name}" for name in staged}
