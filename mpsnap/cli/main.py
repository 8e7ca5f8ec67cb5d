"""`mpsnap VERB`: parse, carry out, and turn what happened into one line and an exit status.

Exit status: 0 = done, every cut consistent and every invariant true; 1 = a cut or an invariant violated; 2 = bad usage
or input, nothing was started; 3 = undecided: a snapshot did not complete, a node or anything else failed; 130 = stopped
by a signal.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from mpsnap import __version__
from mpsnap.cli.apps import APPS
from mpsnap.core.errors import AppError, ConsistencyError, InputError, MpsnapError, NodeError, one_line
from mpsnap.runtime.preflight import secure_standard_streams

if TYPE_CHECKING:
    from mpsnap.cli.show import Result

EXIT_DONE, EXIT_VIOLATED, EXIT_USAGE, EXIT_UNDECIDED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

#: Where the parser of each verb is made, in the order of the help. One verb needs a third of all there is to import.
VERBS: Mapping[str, str] = {
    **{verb: f"mpsnap.cli.{verb}" for verb in ("run", "serve", "resume", "simulate", "explore", "export")},
    **dict.fromkeys(("list", "show", "diff", "verify", "prune"), "mpsnap.cli.reading"),
    **dict.fromkeys(
        ("ps", "status", "snapshot", "state", "command", "pause", "unpause", "stop", "kill", "why"),
        "mpsnap.cli.control",
    ),
    "top": "mpsnap.cli.top",
}

EPILOG = """\
exit status:
  0    done, every cut consistent and every invariant true
  1    a cut or an invariant violated
  2    bad usage or input, nothing was started
  3    undecided: a snapshot did not complete, or a node failed
  130  stopped by Ctrl-C, SIGTERM or a closed terminal

example:
  python -m mpsnap run --topology ring:5 --snapshots 3 --initiator N2
"""


class Parser(argparse.ArgumentParser):
    """Report a usage error on one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        if verb := re.match(r"argument VERB: invalid choice: '(.*)' \(choose from (.*)\)$", message):
            # The list of all is in the help; what was meant is one of them.
            close = difflib.get_close_matches(verb[1], re.findall(r"[\w-]+", verb[2]), n=1)
            better = f"{self.prog} run {verb[1]}" if verb[1] in APPS or ":" in verb[1] else f"{self.prog} --help"
            _refuse(f"there is no verb {verb[1]!r}", close[0] if close else better)
        _refuse(message, f"{self.prog} --help")


def parser(first: str = "") -> argparse.ArgumentParser:
    """Return the parser of the command line: of that of one verb if `first`, its first word, is one."""
    top = Parser(
        prog="python -m mpsnap",
        description="Consistent global snapshots of running multi-process Python programs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"mpsnap {__version__}")
    # Not required: argparse would complain of the missing verb and not of what stands in its place.
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    for module in dict.fromkeys([VERBS[first]] if first in VERBS else VERBS.values()):
        importlib.import_module(module).add_verbs(verbs)
    for verb in verbs.choices.values():
        # For whoever mistypes one.
        verb.set_defaults(known=[option for action in verb._actions for option in action.option_strings])
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit status."""
    secure_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A state may hold what the terminal's encoding has no character for.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parse(argv)
    try:
        result: Result = options.carry_out(options)
    except BrokenPipeError:
        # Whoever read stdout has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_UNDECIDED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SystemExit as end:
        # Ours come from the parser, above. This is code of the user's that was imported and wants an end of its own.
        refusal = AppError(f"what was imported ended in sys.exit({end.code!r})", where=_innermost(end))
        refusal.__cause__ = end
        return _tell(refusal, options.debug, EXIT_USAGE)
    except InputError as error:
        return _tell(error, options.debug, EXIT_USAGE)
    except Exception as error:
        return _tell(error, options.debug, EXIT_UNDECIDED)
    status = EXIT_DONE
    if result.error is not None:
        status = _tell(
            result.error, options.debug, EXIT_VIOLATED if isinstance(result.error, ConsistencyError) else EXIT_UNDECIDED
        )
    return EXIT_INTERRUPTED if result.interrupted else status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    words = sys.argv[1:] if argv is None else argv
    top = parser(*words[:1])
    options, unknown = top.parse_known_args(words)
    prog = top.prog if options.verb is None else f"{top.prog} {options.verb}"
    better = f"{prog} --help"
    if unknown and unknown[0].startswith("-"):
        close = difflib.get_close_matches(unknown[0].partition("=")[0], getattr(options, "known", ()), n=1)
        _refuse(f"there is no option {unknown[0]}", close[0] if close else better)
    if unknown:
        _refuse(f"{unknown[0]!r} is one argument too many", better)
    if options.verb is None:
        _refuse("no verb is given", f"{top.prog} run, or {better}")
    return options


def _refuse(what: str, better: str) -> NoReturn:
    print(f"mpsnap: error: {one_line(what)}; try: {better}", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)


def _innermost(error: BaseException) -> str | None:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def _tell(error: Exception, debug: bool, status: int) -> int:
    if isinstance(error, MpsnapError):
        text = str(error)
        trace = error.traceback if isinstance(error, NodeError) else ""
    else:
        text, trace = f"{type(error).__name__}: {one_line(str(error))}", ""
    print(f"mpsnap: error: {text}", file=sys.stderr)
    if debug:
        print(trace or "".join(traceback.format_exception(error)), file=sys.stderr, end="")
    return status
