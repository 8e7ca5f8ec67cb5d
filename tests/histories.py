"""Event logs made by hand and by chance, for what is drawn of them."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

from mpsnap.core.history import Entry, Head, History, entry_line, head_line, parse_log

GOLDEN = Path(__file__).parent / "golden"

#: What a browser, a terminal, Graphviz or ShiViz would take for its own.
HOSTILE = [
    "</script><img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "</title></style><script>window.pwned=1</script>",
    "]]>--><!--",
    "\x1b[2J\x07\x00\u2028\u202e\ud800",
    '\\N\\G\\" & &lt; &#10; <b>bold</b>\nsecond',
    "${window.pwned=1}{{7*7}}@DATA@",
    "javascript:window.pwned=1",
]


class Story:
    """Tell a run entry by entry; numbers and indexes are counted."""

    def __init__(self, *nodes: str, unit: str = "seconds", app: str = "mine", topology: str = "by hand") -> None:
        channels = tuple((src, dst) for src in nodes for dst in nodes if src != dst)
        driver = "simulator" if unit == "ticks" else "processes"
        self.head = Head(driver, unit, app, topology, nodes, channels)
        self.entries: list[Entry] = []
        self._index: dict[str | None, int] = {}
        self._sent: dict[tuple[str, str], int] = {}
        self._received: dict[tuple[str, str], int] = {}
        self._marked: dict[tuple[str, str, str], int] = {}

    def add(self, time: float, node: str | None, event: str, **detail: Any) -> None:
        index = self._index[node] = self._index.get(node, -1) + 1
        self.entries.append(Entry(node, index, time, event, {name.strip("_"): detail[name] for name in detail}))

    def send(self, time: float, src: str, dst: str, payload: object = None) -> None:
        number = self._sent[src, dst] = self._sent.get((src, dst), 0) + 1
        self.add(time, src, "sent", to=dst, number=number, payload=payload)

    def receive(self, time: float, dst: str, src: str) -> None:
        number = self._received[src, dst] = self._received.get((src, dst), 0) + 1
        self.add(time, dst, "received", from_=src, number=number)

    def record(self, time: float, node: str, snapshot: str, src: str | None, state: object, *to: str) -> None:
        """Record, by a marker from `src` or spontaneously, and send markers."""
        if src is not None:
            number = self._marked[src, node, snapshot]
            self.add(time, node, "marker received", from_=src, snapshot=snapshot, number=number)
        self.add(time, node, "recorded", snapshot=snapshot, from_=src, state=state)
        if src is not None:
            self.add(time, node, "closed", from_=src, snapshot=snapshot)
        for dst in to:
            number = self._marked[node, dst, snapshot] = self._sent.get((node, dst), 0)
            self.add(time, node, "marker sent", to=dst, snapshot=snapshot, number=number)

    @property
    def history(self) -> History:
        return History(self.head, tuple(self.entries))


def written(history: History) -> bytes:
    """Return the log's file."""
    return "".join(line + "\n" for line in (head_line(history.head), *map(entry_line, history.entries))).encode()


def tokens() -> History:
    """A run of the simulator: three nodes, a snapshot, messages in flight at its cut and at the end."""
    name = "tokens.log"
    return parse_log((GOLDEN / name).read_bytes().splitlines(keepends=True), name)


def everything() -> History:
    """Every event there is, in seconds: a snapshot that completes, one that is abandoned, a death, what is missing."""
    story = Story("alpha", "beta", "gamma")
    story.add(0.000010, "alpha", "timer", method="tick")
    story.send(0.000010, "alpha", "beta", {"to": 1, "amount": 5})
    story.send(0.000010, "alpha", "beta", {"$tuple": [1, "two"]})
    story.send(0.000012, "beta", "gamma", "a text")
    story.add(0.000020, "gamma", "command", value={"stop": False})
    story.receive(0.000031, "beta", "alpha")
    story.add(0.000031, "beta", "output", n=0, record=["done", 1])
    story.add(0.000040, None, "initiated", number=0, snapshot="0-alpha-1", initiators=["alpha"])
    story.record(0.000041, "alpha", "0-alpha-1", None, {"balance": 95}, "beta", "gamma")
    story.send(0.000050, "alpha", "gamma", 3.5)
    story.record(0.000060, "beta", "0-alpha-1", "alpha", {"balance": 105}, "alpha", "gamma")
    story.receive(0.000065, "beta", "alpha")
    story.record(0.000070, "gamma", "0-alpha-1", "alpha", {"$size": 70000}, "alpha", "beta")
    story.add(0.000071, "gamma", "marker received", from_="beta", snapshot="0-alpha-1", number=1)
    story.add(0.000071, "gamma", "closed", from_="beta", snapshot="0-alpha-1")
    story.add(0.000071, "gamma", "reported", snapshot="0-alpha-1", channels={"alpha": [1, 0], "beta": [1, 1]})
    story.receive(0.000080, "gamma", "beta")
    story.add(0.000081, "beta", "reported", snapshot="0-alpha-1", channels={"alpha": [2, 1], "gamma": [1, 0]})
    story.add(0.000090, None, "completed", number=0, snapshot="0-alpha-1", verified=True)
    story.add(0.000091, "gamma", "log", text="all is well")
    story.add(0.000095, None, "initiated", number=1, snapshot="0-beta-1", initiators=["beta"])
    story.record(0.000096, "beta", "0-beta-1", None, {"balance": 105}, "alpha", "gamma")
    story.add(0.000097, "alpha", "marker received", from_="beta", snapshot="0-beta-1", number=0)
    story.add(
        *(0.000097, "alpha", "refused"), snapshot="0-beta-1", error={"what": "a lock", "where": "state", "try": None}
    )
    error = {"what": "alpha refused", "where": None, "try": None}
    story.add(0.000100, None, "abandoned", number=1, snapshot="0-beta-1", error=error)
    story.add(0.000110, "alpha", "dropped", count=12, sent={"beta": 9})
    story.send(0.000111, "beta", "alpha", None)
    story.add(0.000120, "gamma", "died", error={"what": "killed by SIGKILL", "where": "gamma", "try": "its stderr"})
    story.add(0.000121, None, "violated", error={"what": "not conserved", "where": "snapshot 0", "try": None})
    return story.history


def hostile() -> History:
    """Names, values and texts that would like to be more than text, and one later event without a word for it."""
    names = [text.replace("\ud800", "") for text in HOSTILE[:4]]
    story = Story(*names, app=HOSTILE[2], topology=HOSTILE[0])
    for k, text in enumerate(HOSTILE):
        src, dst = names[k % 4], names[(k + 1) % 4]
        story.send(k / 1000, src, dst, {text: [text, {"$set": [text]}]})
        story.add(k / 1000, src, "log", text=text)
        story.add(k / 1000, src, "output", n=k, record=text)
        story.add(k / 1000, src, "command", value=text)
        story.add(k / 1000, src, "timer", method=text)
        story.add(k / 1000, src, text, what=text)
    story.add(0.02, None, "initiated", number=0, snapshot=HOSTILE[0], initiators=names[:1])
    story.record(0.021, names[0], HOSTILE[0], None, dict.fromkeys(HOSTILE, HOSTILE[1]), names[1])
    story.record(0.022, names[1], HOSTILE[0], names[0], HOSTILE[1])
    story.add(0.0221, names[1], "reported", snapshot=HOSTILE[0], channels={names[0]: [1, 2]})
    story.add(0.023, None, "abandoned", number=0, snapshot=HOSTILE[0], error={"what": HOSTILE[1], "where": HOSTILE[0]})
    story.receive(0.024, names[1], names[0])
    story.add(0.03, names[0], "died", error={"what": HOSTILE[0], "where": HOSTILE[5], "try": None})
    story.add(0.03, names[2], "refused", snapshot=HOSTILE[1], error=HOSTILE[4])
    return story.history


def by_chance(seed: int, nodes: int = 4, entries: int = 300, unit: str = "seconds") -> History:
    """Messages between all nodes, on channels that keep their order; times are coarse, so many entries share one."""
    draw = random.Random(seed)
    names = [f"N{k}" for k in range(1, nodes + 1)]
    story = Story(*names, unit=unit, app="chance", topology=f"complete:{nodes}")
    flying: dict[tuple[str, str], deque[int]] = {}
    time: float = 0
    for k in range(entries):
        time = time + (draw.random() < 0.3) if unit == "ticks" else round(time + draw.choice((0, 0, 1e-6, 4e-5)), 6)
        busy = [channel for channel, queue in flying.items() if queue]
        if busy and draw.random() < 0.5:
            src, dst = draw.choice(busy)
            flying[src, dst].popleft()
            story.receive(time, dst, src)
        elif draw.random() < 0.1:
            story.add(time, draw.choice(names), "timer", method="tick")
        else:
            src, dst = draw.sample(names, 2)
            flying.setdefault((src, dst), deque()).append(k)
            story.send(time, src, dst, {"k": k})
    return story.history


def large(events: int = 500, nodes: int = 8) -> History:
    """So many events of each node, and a snapshot in the middle that every node records."""
    first, second = by_chance(1, nodes, events * nodes), Story(*(f"N{k}" for k in range(1, nodes + 1)))
    half = len(first.entries) // 2
    middle = first.entries[half].time
    later = [entry._replace(time=entry.time + 0.001) for entry in first.entries[half:]]
    second.add(middle + 1e-6, None, "initiated", number=0, snapshot="0-N1-1", initiators=["N1"])
    second.record(middle + 1e-6, "N1", "0-N1-1", None, {"k": 1}, *second.head.nodes[1:])
    for k, name in enumerate(second.head.nodes[1:], 2):
        second.record(middle + k * 1e-6, name, "0-N1-1", "N1", {"k": k})
    sent: dict[tuple[str, str], int] = {}
    taken: dict[tuple[str, str], int] = {}
    for node, _, _, event, detail in first.entries[:half]:
        if event == "sent":
            sent[str(node), detail["to"]] = detail["number"]
        elif event == "received":
            taken[detail["from"], str(node)] = detail["number"]
    for dst in second.head.nodes:
        channels = {
            src: [taken.get((src, dst), 0) + 1, sent.get((src, dst), 0) - taken.get((src, dst), 0)]
            for src in second.head.nodes
            if src != dst
        }
        second.add(middle + 2e-5, dst, "reported", snapshot="0-N1-1", channels=channels)
    second.add(middle + 3e-5, None, "completed", number=0, snapshot="0-N1-1", verified=True)
    return History(first.head, (*first.entries[:half], *second.entries, *later))
