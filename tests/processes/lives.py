"""Programs whose supervisor dies at a planned moment, one life after another, on one store.

    python lives.py FOLDER METHOD FIRST LAST STEP [AGAIN]

Life k ends with the k-th operation on the store's disk, k from FIRST to LAST by STEP; it goes on from the last recovery
point that the ones before have left, or with AGAIN begins afresh in a folder of its own, and another one follows. The
last life comes to an orderly end. After each, its nodes are dead within `ORPHAN_SECONDS`, and the store and the file of
outputs are whole.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from drill import Drill, File, KillingDisk
from ledger import check_conserved, check_records

from mpsnap.store.contract import is_recovery_point
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.reader import MARK, DirectoryReader

ORPHAN_SECONDS = 2.0
MOST_KEPT = 20


def live(folder: Path, method: str, last: int, tell: int) -> None:
    """Be one life; tell the pids of its nodes."""
    it = Drill(folder, method, disk=KillingDisk(last), resume=True, params={"tick": 0.001})
    it.supervisor.start()
    pids = [str(each["pid"]) for each in it.supervisor.status()["nodes"].values()]
    os.write(tell, " ".join(pids).encode())
    it.until(lambda: it.since > 1, "a snapshot")
    it.stop()
    it.check(0)
    it.close()


def end(name: str, life: Callable[[int], None], patience: float = ORPHAN_SECONDS) -> bool:
    """Run one life in a process of its own, which tells pids by a descriptor; return whether its end was orderly."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            life(writing)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    died = time.monotonic()
    # Not to its end: nodes that live have it open too.
    os.set_blocking(reading, False)
    with open(reading, "rb", buffering=0) as pipe:
        pids = [int(pid) for pid in (pipe.readall() or b"").split()]
    while left := [pid for pid in pids if lives(pid)]:
        if time.monotonic() > died + patience:
            states = [Path(f"/proc/{pid}/status").read_text() for pid in left]
            raise AssertionError(f"{name}: nodes outlive their supervisor: {states}")
        time.sleep(0.001)
    assert status in (0, signal.SIGKILL), f"{name} ended with {status}"
    return status == 0


def lives(pid: int) -> bool:
    """Return whether a process has not ended, and is not about to: on a busy machine even that takes its time."""
    try:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return False
    killed = any(int(status[name], 16) >> (signal.SIGKILL - 1) & 1 for name in ("SigPnd", "ShdPnd"))
    return status["State"][0] not in "ZX" and not killed


def look(folder: Path, before: int) -> int:
    """See that the store and the outputs are whole; return the number of the newest recovery point, -1 for none."""
    if not (folder / "store" / MARK).exists():
        return -1
    with DirectoryReader(folder / "store") as reader:
        for number in reader.numbers():
            reader.verify(number)
        last = reader.latest(is_recovery_point)
        if last is not None:
            check_conserved(reader.load(last.number), sum(last.topology.tokens.values()))
        numbers = reader.numbers()
    newest = -1 if last is None else last.number
    assert newest >= before, "a recovery point is lost"
    if last is not None:
        # Before and after what the next life cuts off.
        outputs = File(folder / "outputs")
        check_records(outputs.records(), None)
        assert last.emitted_bytes is not None
        assert last.emitted_bytes <= outputs.sync()
    if len(numbers) > MOST_KEPT:
        # Lives that end early keep more and more, and then do nothing but look through it.
        with DirectoryStore(folder / "store") as store:
            store.retain(MOST_KEPT // 2)
    return newest


def main(folder: Path, method: str, first: int, last: int, step: int, again: bool) -> None:
    """Run all lives."""
    newest, count = -1, 0
    for k in range(first, last + 1, step):
        home = folder / str(k) if again else folder
        home.mkdir(exist_ok=True)
        if end(f"life {k}", partial(live, home, method, k)):
            break
        count += 1
        newest = look(home, -1 if again else newest)
        if again:
            assert end(f"life after {k}", partial(live, home, method, 0)), "the next life did not come to its end"
    else:
        assert again or end("last life", partial(live, folder, method, 0)), "the last life did not come to its end"
    print(count, newest)  # noqa: T201 - for the test


if __name__ == "__main__":
    start, stop, stride = map(int, sys.argv[3:6])
    main(Path(sys.argv[1]), sys.argv[2], start, stop, stride, len(sys.argv) > 6)
