"""Count the words of text files: a reader, splitters, counters. It ends by itself when a cut proves that it has.

`python -m mpsnap run wordcount --param files=a.txt,b.txt`
"""

import re
import zlib
from collections import Counter
from typing import IO

from mpsnap import Context, Node, Topology

SPLITTERS = ("splitter1", "splitter2")
COUNTERS = ("counter1", "counter2")
#: Lines that travel in one message.
LINES = 64


class Reader(Node):
    """Read files line by line and deal the lines out."""

    endless = False
    transient = ("file",)

    def setup(self, ctx: Context, files: str | list[str]) -> None:
        self.files = files.split(",") if isinstance(files, str) else list(files)
        #: Where the next line begins, in the first of the files.
        self.offset = 0
        self.batches = 0

    def on_start(self, ctx: Context) -> None:
        self.file = self._open()

    def _open(self) -> IO[bytes] | None:
        if not self.files:
            return None
        file = open(self.files[0], "rb")  # noqa: SIM115 - stays open between hooks
        file.seek(self.offset)
        return file

    def on_idle(self, ctx: Context) -> bool:
        if self.file is None:
            return False
        lines = [line for _ in range(LINES) if (line := self.file.readline())]
        if lines:
            try:
                text = b"".join(lines).decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.files[0]} is not UTF-8 text: {error.reason}") from error
            self.offset = self.file.tell()
            ctx.send(SPLITTERS[self.batches % len(SPLITTERS)], text)
            self.batches += 1
        else:
            self.file.close()
            del self.files[0]
            self.offset = 0
            self.file = self._open()
        return True


class Splitter(Node):
    """Split text into words and send each to the counter that is in charge of it."""

    endless = False

    def on_message(self, ctx: Context, sender: str, payload: str) -> None:
        shares: dict[str, list[str]] = {counter: [] for counter in COUNTERS}
        for word in re.findall(r"\w+", payload.lower()):
            # Not hash(): it differs from process to process, and a word must always find the same counter.
            shares[COUNTERS[zlib.crc32(word.encode()) % len(COUNTERS)]].append(word)
        for counter, words in shares.items():
            if words:
                ctx.send(counter, tuple(words))


class WordCounter(Node):
    """Count words, and put the counts out at the end."""

    endless = False

    def setup(self, ctx: Context) -> None:
        self.counts: Counter[str] = Counter()

    def on_message(self, ctx: Context, sender: str, payload: tuple[str, ...]) -> None:
        self.counts.update(payload)

    def on_stop(self, ctx: Context) -> None:
        for word, count in sorted(self.counts.items()):
            ctx.emit({"word": word, "count": count})


nodes = {"reader": Reader, "splitter*": Splitter, "counter*": WordCounter}
default_topology = Topology(
    nodes=["reader", *SPLITTERS, *COUNTERS],
    channels=[("reader", s) for s in SPLITTERS] + [(s, c) for s in SPLITTERS for c in COUNTERS],
    name="wordcount",
)
