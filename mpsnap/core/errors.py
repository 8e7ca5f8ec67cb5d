"""Every error mpsnap raises on purpose.

This module owns the tree below and the one-line form that users see. It must not know who prints an error or with
which exit status a command ends: that is the command line's business.

    MpsnapError
      InputError            what was asked for cannot be done; nothing was started
        TopologyError         a topology or .top file
        ScriptError           an .events script
        AppError              an app that cannot be found, imported or configured
        PreflightError        this machine, as it is set up, cannot hold the cluster
        SnapshotIncompatible  a stored snapshot of another topology or of other programs
      CodecError            a value that cannot be kept exactly
      ProtocolError         a driver or a channel broke a rule; the state is unchanged
      ConsistencyError      a cut is not consistent or not complete
        InvariantError        a consistent cut on which a user's invariant is false
      SnapshotError         a snapshot did not complete and was abandoned
        SnapshotLost          because of a death that the cluster has survived
      StoreError            a store of snapshots cannot be read or written
        SnapshotCorrupt       a stored snapshot is not what was committed
      ClusterError          the cluster cannot go on
        NodeError             because of this node: what it was doing, how it ended
        ClusterDeadlock       because these nodes wait for each other's full channels

Rules for whoever raises one: `what` is a sentence without its full stop, `where` is the narrowest place known
(file:line, node, channel), `hint` says what to try. All three are plain text of one line: control characters are
escaped here, so that no name or payload can forge a line or steer a terminal.
"""

from __future__ import annotations


def one_line(text: str) -> str:
    r"""Return `text` with every unprintable character escaped, so that it stays one harmless line.

    >>> one_line("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class MpsnapError(Exception):
    """Say what failed, where, and what to try."""

    #: What went wrong, one line.
    what: str
    #: The narrowest place known, or None.
    where: str | None
    #: What to try, or None.
    hint: str | None

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = one_line(what)
        self.where = None if where is None else one_line(where)
        self.hint = None if hint is None else one_line(hint)

    def __str__(self) -> str:
        # "N1: N1 died" says it twice.
        place = f"{self.where}: " if self.where and not self.what.startswith(self.where) else ""
        advice = f"; try: {self.hint}" if self.hint else ""
        return f"{place}{self.what}{advice}"


class InputError(MpsnapError):
    """Refuse what was asked for before anything is started."""


class TopologyError(InputError):
    """Refuse a topology; `where` is file:line or the position in the specification."""


class ScriptError(InputError):
    """Refuse an .events script; `where` is file:line."""


class AppError(InputError):
    """Refuse an app that cannot be found, imported or given these parameters."""


class PreflightError(InputError):
    """Refuse a cluster that this machine cannot hold, with the numbers and the remedy."""


class SnapshotIncompatible(InputError):
    """Refuse a stored snapshot that belongs to another topology or to other programs, and say in what they differ."""


class OutputError(MpsnapError):
    """Report that a file cannot be written any more; no node is to blame for it, though it may happen in a hook."""


class CodecError(MpsnapError):
    """Refuse a value that could not be kept exactly; `where` is its path."""


class ProtocolError(MpsnapError):
    """Refuse an illegal step; the state of whoever raised it is unchanged."""


class ConsistencyError(MpsnapError):
    """Report a cut that is not consistent or not complete; `where` is the node or channel."""


class InvariantError(ConsistencyError):
    """Report a consistent cut on which an invariant is false or raised."""


class SnapshotError(MpsnapError):
    """Report a snapshot that did not complete and was abandoned."""


class StoreError(MpsnapError):
    """Report that a store of snapshots cannot be read or written; `where` is its path or a file in it.

    What was being written is not in the store, and what was there before still is.
    """


class SnapshotCorrupt(StoreError):
    """Refuse a stored snapshot that is not, or not whole, what was committed; `where` is the file that shows it."""


class SnapshotLost(SnapshotError):
    """Report a snapshot that a node took along when it died; the cluster goes on, and takes others."""


class ClusterError(MpsnapError):
    """Report that the cluster cannot go on."""


class ClusterDeadlock(ClusterError):
    """Report a cycle of nodes that wait for each other to take messages from full channels."""


class NodeError(ClusterError):
    """Report the node that made the cluster fail.

    `phase` is what the node was doing (a word of `mpsnap.core.node.PHASES`), `status` its exit status in words,
    `traceback` the text of its exception, empty when it had no chance to tell, `in_hand` the sender and the number of
    the message that it was handling, None if it was none or had no chance to tell.
    """

    def __init__(
        self,
        what: str,
        *,
        node: str,
        phase: str,
        status: str,
        traceback: str = "",
        in_hand: tuple[str, int] | None = None,
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.node = node
        self.in_hand = in_hand
        self.phase = phase
        self.status = status
        self.traceback = traceback
