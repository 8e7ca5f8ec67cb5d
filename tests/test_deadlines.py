"""What is due is done then and once, and nobody wakes up again and again for what is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mpsnap.runtime import deadlines as module
from mpsnap.runtime.deadlines import Deadlines


class _Clock:
    """Stand in for the monotonic clock."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_each_is_kept_once_and_not_before_it_is_due(clock: _Clock) -> None:
    done: list[str] = []
    deadlines = Deadlines()
    deadlines.set("soon", 1.0, lambda: done.append("soon"))
    deadlines.set("late", 2.0, lambda: done.append("late"))
    for seconds, due in ((0.5, []), (1.0, ["soon"]), (1.5, ["soon"]), (2.0, ["soon", "late"]), (9.0, ["soon", "late"])):
        clock.now = 100.0 + seconds
        deadlines.keep()
        assert done == due, seconds
    assert deadlines.seconds_left() == float("inf")


def test_one_that_is_put_off_is_kept_later_only(clock: _Clock) -> None:
    done: list[str] = []
    deadlines = Deadlines()
    deadlines.set("it", 1.0, lambda: done.append("first"))
    deadlines.set("it", 3.0, lambda: done.append("second"))
    clock.now += 1.0
    deadlines.keep()
    assert not done
    assert deadlines.seconds_left() == 2.0
    clock.now += 2.0
    deadlines.keep()
    assert done == ["second"]


def test_one_that_is_cancelled_wakes_nobody_twice(clock: _Clock) -> None:
    deadlines = Deadlines()
    deadlines.set("gone", 1.0, lambda: pytest.fail("it was cancelled"))
    deadlines.set("other", 5.0, lambda: None)
    deadlines.cancel("gone")
    clock.now += 1.0
    deadlines.keep()
    # With 0 here whoever waits would turn round without a pause until the other is due.
    assert deadlines.seconds_left() == 4.0


def test_what_is_set_by_one_that_is_kept_is_kept_too(clock: _Clock) -> None:
    done: list[str] = []
    deadlines = Deadlines()
    deadlines.set("one", 1.0, lambda: deadlines.set("two", 1.0, lambda: done.append("two")))
    clock.now += 1.0
    deadlines.keep()
    assert not done
    assert deadlines.seconds_left() == 1.0
    clock.now += 1.0
    deadlines.keep()
    assert done == ["two"]


def test_one_that_raises_leaves_the_others_to_be_kept(clock: _Clock) -> None:
    done: list[str] = []
    deadlines = Deadlines()
    deadlines.set("bad", 1.0, lambda: [].pop())
    deadlines.set("good", 1.0, lambda: done.append("good"))
    clock.now += 1.0
    with pytest.raises(IndexError):
        deadlines.keep()
    assert deadlines.seconds_left() == 0.0
    deadlines.keep()
    assert done == ["good"]
