"""Who is to blame for an exception of a node, in plain words: what, where in the user's code, what to try.

This module owns how an exception becomes an error that names its place. It must not know which driver ran the node.
"""

from __future__ import annotations

import traceback
from typing import NamedTuple

from mpsnap.core.errors import MpsnapError, NodeError, one_line

_PACKAGE = __file__.rpartition("/core/")[0] + "/"
_APPS = _PACKAGE + "apps/"
#: The standard library's own folder.
_LIBRARY = traceback.__file__.rpartition("/")[0] + "/"


class Blame(NamedTuple):
    """Say of an exception what went wrong, where, what to try, and its whole traceback, all as text."""

    what: str
    where: str | None
    hint: str | None
    traceback: str


def blame(error: BaseException) -> Blame:
    """Return what an exception says and the user's own line that raised it."""
    # An exception's own __str__ may raise; the formatter of tracebacks copes with that.
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    line = _user_line(error)
    if isinstance(error, MpsnapError):
        if line is None or error.where is None or error.what.startswith(error.where):
            return Blame(error.what, line or error.where, error.hint, text)
        return Blame(f"{error.where}: {error.what}", line, error.hint, text)
    summary = "".join(traceback.format_exception_only(type(error), error)).strip()
    return Blame(one_line(summary.splitlines()[0] if summary else type(error).__name__), line, None, text)


def node_error(node: str, phase: str, blamed: Blame, status: str, in_hand: tuple[str, int] | None = None) -> NodeError:
    """Return the error of a node whose code raised while it was in `phase`; `status` says how the node ended."""
    return NodeError(
        f"{node} failed in {phase}: {blamed.what}",
        node=node,
        phase=phase,
        status=status,
        traceback=blamed.traceback,
        in_hand=in_hand,
        where=blamed.where or node,
        hint=blamed.hint,
    )


def _user_line(error: BaseException) -> str | None:
    """Return file:line of the innermost frame that is neither ours nor the standard library's: the user's own line."""
    place = None
    for frame in traceback.extract_tb(error.__traceback__):
        ours = frame.filename.startswith((_PACKAGE, _LIBRARY, "<frozen"))
        if not ours or frame.filename.startswith(_APPS):
            place = f"{frame.filename}:{frame.lineno}"
    if place is None and error.__cause__ is not None:
        # A capture that raised is told by an error of ours, whose cause knows the line.
        return _user_line(error.__cause__)
    return place
