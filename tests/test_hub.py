"""The hub of the control process, against a supervisor that is none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from upstream import Upstream, no_answer, run, told, until

from mpsnap.core.codec import Codec
from mpsnap.core.errors import ClusterError, InputError, MpsnapError
from mpsnap.server import hub
from mpsnap.server.hub import Hub

# --- The hub: what it lets through, and what it asks. ---

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("status", {"node": "N1"}, "status takes no 'node'; try: status alone"),
    ("sttus", {}, "there is no request 'sttus'; try: status"),
    ("wach", {}, "there is no request 'wach'; try: watch"),
    ("__init__", {}, "there is no request '__init__'"),
    ("snapshot", {"nodes": "N1"}, "'nodes' of snapshot is 'N1', which is no nodes"),
    ("snapshot", {"nodes": [1]}, "'nodes' of snapshot is [1], which is no nodes"),
    ("snapshot", {"nodes": ["N4"]}, "there is no node 'N4'; try: N"),
    ("snapshot", {"wait": 1}, "'wait' of snapshot is 1, which is no bool"),
    ("snapshot", {"wait": None}, "'wait' of snapshot is None, which is no bool"),
    ("snapshot", {"node": ["N1"]}, "snapshot takes no 'node'; try: nodes"),
    ("content", {}, "content needs 'number'"),
    ("content", {"number": True}, "'number' of content is True, which is no number"),
    ("content", {"number": -1}, "'number' of content is -1, which is no number"),
    ("content", {"number": 1 << 63}, "which is no number"),
    ("content", {"number": "1"}, "'number' of content is '1', which is no number"),
    ("content", {"number": 1.0}, "'number' of content is 1.0, which is no number"),
    ("content", {"number": 1, "short": 0}, "'short' of content is 0, which is no bool"),
    ("diff", {"old": 1}, "diff needs 'new'"),
    ("diff", {"old": [], "new": 1}, "'old' of diff is [], which is no number"),
    ("state", {}, "state needs 'node'"),
    ("state", {"node": None}, "'node' of state is None, which is no node"),
    ("state", {"node": ["N1"]}, "'node' of state is ['N1'], which is no node"),
    ("state", {"node": "n1"}, "there is no node 'n1'; try: N1"),
    ("state", {"node": "N1\n"}, r"there is no node 'N1\n'"),
    ("command", {"node": "N1"}, "command needs 'command'"),
    ("command", {"command": 1}, "command needs 'node'"),
    ("pause", {"nodes": {"N1": 1}}, "which is no nodes"),
    ("pause", {"nodes": None}, "'nodes' of pause is None, which is no nodes"),
    ("unpause", {"nodes": ["N1", None]}, "which is no nodes"),
    ("stop", {"node": 0}, "'node' of stop is 0, which is no node or null"),
    ("stop", {"node": ""}, "there is no node ''"),
    ("kill", {}, "kill needs 'node'"),
    ("kill", {"node": None}, "'node' of kill is None, which is no node"),
]


def test_what_makes_no_sense_is_refused_and_reaches_nobody() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            for do, args, expected in WRONG:
                with pytest.raises(InputError) as caught:
                    await made.ask(do, args)
                assert expected in str(caught.value)
            for every in (0, 0.01, 1e9, float("nan"), "1", None, True):
                with pytest.raises(InputError, match="'every' of watch is"):
                    await anext(made.watch(every))  # type: ignore[arg-type]
        assert upstream.asked == []

    run(test())


def test_what_makes_sense_is_handed_on_with_all_its_arguments() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            upstream.answers["pause"] = lambda args: {"paused": args["nodes"]}
            assert await made.ask("pause", {"nodes": ["N2", "N1"]}) == {"paused": ("N2", "N1")}
            assert await made.ask("unpause", {}) == {}
            assert await made.ask("stop", {}) == {}
            assert await made.ask("stop", {"node": "N3"}) == {}
            assert await made.ask("kill", {"node": "N3"}) == {}
            assert await made.ask("hello", {}) == {"name": "tokens-1"}
        assert upstream.asked == [
            ("pause", {"nodes": ("N2", "N1")}),
            ("unpause", {"nodes": ()}),
            ("stop", {"node": None}),
            ("stop", {"node": "N3"}),
            ("kill", {"node": "N3"}),
        ]

    run(test())


@pytest.mark.parametrize(
    "command",
    [None, [1, [2]], {"list": [1], "deep": {"deeper": [True, 1.5, "x"]}}, 1 << 200, -(1 << 70), "\ud800"],
    ids=["null", "lists", "objects", "a large number", "a small number", "half a character"],
)
def test_a_command_arrives_as_the_json_that_it_is(command: object) -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["command"] = lambda args: {
            "node": args["node"],
            "reply": json.dumps(Codec().decode(args["command"])),
        }
        async with upstream.hub() as made:
            assert await made.ask("command", {"node": "N1", "command": command}) == {"node": "N1", "reply": command}
            deep: Any = "x"
            for _ in range(500):
                deep = [deep]
            with pytest.raises(MpsnapError, match="more than 100 levels"):
                await made.ask("command", {"node": "N1", "command": deep})
        assert upstream.times("command") == 1

    run(test())


def test_errors_come_back_as_what_they_were() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            for kind in (InputError, ClusterError):

                def refuse(args: dict[str, Any], kind: type[MpsnapError] = kind) -> None:
                    raise kind("no", where="N1", hint="yes")

                upstream.answers["pause"] = refuse
                with pytest.raises(kind) as caught:
                    await made.ask("pause", {})
                assert str(caught.value) == "N1: no; try: yes"

    run(test())


def test_only_so_many_requests_are_under_way() -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["state"] = no_answer
        async with upstream.hub() as made:
            asked = [asyncio.create_task(made.ask("state", {"node": "N1"})) for _ in range(hub.MOST_REQUESTS)]
            await until(lambda: upstream.times("state") == hub.MOST_REQUESTS, "all of them")
            with pytest.raises(ClusterError, match="64 requests are under way already"):
                await made.ask("state", {"node": "N1"})
            # Whoever goes makes room.
            asked.pop().cancel()
            await asyncio.sleep(0)
            assert await made.ask("pause", {}) == {}
            upstream.go()
            for task in asked:
                with pytest.raises(ClusterError, match="the run has ended"):
                    await task
            with pytest.raises(ClusterError, match="the run has ended"):
                await made.ask("state", {"node": "N1"})

    run(test())


def test_answers_to_somebody_else_are_no_answers() -> None:
    """To one who has given up, or to the control process before this one, whose numbers were others."""

    async def test() -> None:
        upstream = Upstream()
        upstream.answers["pause"] = no_answer
        async with upstream.hub(first=(1 << 40) + 1) as made:
            waiting = asyncio.create_task(made.ask("pause", {}))
            await until(lambda: upstream.asked, "the question")
            assert upstream.numbers == [(1 << 40) + 1]
            upstream.post("answer", 1, {"paused": "wrong"})
            upstream.post("answer", (1 << 40) + 1, {"paused": "right"})
            assert await waiting == {"paused": "right"}

    run(test())


# --- The hub: status. ---


def test_many_viewers_cost_the_supervisor_one_status_an_interval() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            began = time.monotonic()
            seen = [0] * 30

            async def view(k: int) -> None:
                async with contextlib.aclosing(made.watch(0.1)) as items:
                    async for kind, _ in items:
                        seen[k] += kind == "status"
                        if seen[k] == 4:
                            return

            await asyncio.gather(*(view(k) for k in range(30)))
            # Each wait is at least so long; on a slow machine there are fewer, never more.
            assert 4 <= upstream.times("status") <= (time.monotonic() - began) / hub.STATUS_SECONDS + 2
            assert not made._viewers

    run(test())


def test_a_status_shows_what_was_done_before() -> None:
    """Also if another one was asked for just before, and is not there yet."""

    async def test() -> None:
        upstream = Upstream()
        done = 0

        def pause(args: dict[str, Any]) -> dict[str, Any]:
            nonlocal done
            done += 1
            return {"paused": []}

        upstream.answers = {"pause": pause, "status": lambda args: told(done)}
        async with upstream.hub() as made:
            for k in range(1, 50):
                earlier = asyncio.create_task(made.status()) if k % 2 else None
                await made.ask("pause", {})
                assert (await made.ask("status", {}))["channels"][0]["handled"] == k
                if earlier is not None:
                    await earlier
            # Without that, one is asked for no more often than it has to be.
            before = upstream.times("status")
            now = time.monotonic()
            while time.monotonic() - now < 0.02:
                await made.status()
            assert upstream.times("status") <= before + 1

    run(test())


def test_whoever_gives_up_waiting_for_a_status_takes_it_from_nobody() -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["status"] = no_answer
        async with upstream.hub() as made:
            first, second = (asyncio.create_task(made.status()) for _ in range(2))
            await until(lambda: upstream.asked, "the question")
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            upstream.post("answer", upstream.numbers[0], told())
            assert (await second)["run"]["name"] == "tokens-1"
            assert upstream.times("status") == 1

    run(test())


def test_who_looks_into_large_snapshots_keeps_no_status_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["content"] = lambda args: {"digest": {}}
        go = threading.Event()
        async with upstream.hub() as made:
            monkeypatch.setattr(made._snapshots, "document", lambda *args: go.wait(20))
            looking = [asyncio.create_task(made.ask("content", {"number": 0})) for _ in range(40)]
            await until(lambda: upstream.times("content") == 40, "all of them")
            try:
                assert (await made.ask("status", {}))["run"]["name"] == "tokens-1"
            finally:
                go.set()
            assert [answer["snapshot"] for answer in await asyncio.gather(*looking)] == [True] * 40

    run(test())


# --- The hub: viewers. ---


def test_viewers_are_told_of_snapshots_and_nothing_is_asked_as_long_as_there_are_none() -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["news"] = lambda args: [{"number": 7, "phase": "completed"}]
        async with upstream.hub() as made:
            upstream.post("changed")
            await made.ask("pause", {})
            await asyncio.sleep(2 * hub.CHANGES_SECONDS)
            assert upstream.times("news") == 0
            items = made.watch(3600)
            assert (await anext(items))[0] == "status"
            assert await anext(items) == ("snapshot", {"number": 7, "phase": "completed"})
            assert upstream.times("news") == 1
            upstream.post("changed")
            assert await anext(items) == ("snapshot", {"number": 7, "phase": "completed"})
            await items.aclose()
            assert not made._viewers

    run(test())


def test_a_slow_viewer_loses_what_it_has_no_room_for_and_sees_a_status_again() -> None:
    async def test() -> None:
        upstream = Upstream()
        upstream.answers["news"] = lambda args: [{"number": n} for n in range(60)]
        async with upstream.hub() as made:
            slow, quick = made.watch(3600), made.watch(3600)
            for items in (slow, quick):
                assert (await anext(items))[0] == "status"
            got: list[tuple[str, Any]] = []
            while len(got) < 120:
                if len(got) % 60 == 0:
                    upstream.post("changed")
                got.append(await anext(quick))
            assert got == [("snapshot", {"number": n}) for n in range(60)] * 2, "another one's slowness costs nothing"
            rest = [await anext(slow) for _ in range(22)]
            assert rest[0] == ("lost", {})
            assert [value["number"] for _, value in rest[1:21]] == list(range(40, 60))
            assert rest[21][0] == "status"
            for items in (slow, quick):
                await items.aclose()

    run(test())


@pytest.mark.parametrize("orderly", [True, False])
def test_everybody_is_told_the_end(orderly: bool) -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            before = made.watch(3600)
            assert (await anext(before))[0] == "status"
            error = {"what": "N1 died", "where": "N1", "try": None}
            if orderly:
                upstream.post("end", error)
            upstream.go()
            assert await made.run() is orderly
            gone = {"what": "the supervisor is gone", "where": None, "try": None}
            for items in (before, made.watch(3600)):
                rest = [item async for item in items]
                assert rest == [("end", {"error": error if orderly else gone})]
            await made.seen_off()

    run(test())


def test_there_are_only_so_many_viewers() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            watching = [made.watch(3600) for _ in range(hub.MOST_VIEWERS)]
            for items in watching:
                await anext(items)
            with pytest.raises(ClusterError, match="64 viewers are there already"):
                await anext(made.watch(3600))
            for items in watching:
                await items.aclose()
            assert [kind async for kind, _ in _first(made.watch(3600))] == ["status"]

    run(test())


async def _first(items: Any) -> AsyncIterator[tuple[str, Any]]:
    async with contextlib.aclosing(items):
        yield await anext(items)


def test_a_hub_that_can_listen_no_more_ends_its_process() -> None:
    async def test() -> None:
        upstream = Upstream()
        async with upstream.hub() as made:
            upstream.post("nonsense")
            with pytest.raises(TypeError):
                await made.run()

    run(test())


def test_a_supervisor_that_is_gone_before_its_first_word() -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair()
        ours.close()
        made = Hub(*await asyncio.open_unix_connection(sock=theirs))
        with pytest.raises(ConnectionError):
            await made.begin()
        made._outgoing.close()

    run(test())
