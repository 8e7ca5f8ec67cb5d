"""`mpsnap VERB`: parse, carry out, and turn what happened into one line and an exit status.

Exit status: 0 = done, every cut consistent and every invariant true; 1 = a cut or an invariant violated; 2 = bad usage
or input, nothing was started; 3 = undecided: a snapshot did not complete, a node or anything else failed; 130 = stopped
by a signal.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from mpsnap import __version__
from mpsnap.cli import run
from mpsnap.core.errors import ConsistencyError, InputError, MpsnapError, NodeError, one_line

EXIT_DONE, EXIT_VIOLATED, EXIT_USAGE, EXIT_UNDECIDED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

EPILOG = """\
exit status:
  0    done, every cut consistent and every invariant true
  1    a cut or an invariant violated
  2    bad usage or input, nothing was started
  3    undecided: a snapshot did not complete, or a node failed
  130  stopped by Ctrl-C or SIGTERM

example:
  python -m mpsnap run --topology ring:5 --snapshots 3 --initiator N2
"""


class Parser(argparse.ArgumentParser):
    """Report a usage error on one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        print(f"mpsnap: error: {one_line(message)}; try: {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = Parser(
        prog="python -m mpsnap",
        description="Consistent global snapshots of running multi-process Python programs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"mpsnap {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    run.add_parser(verbs)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit status."""
    options = _parse(argv)
    try:
        result: run.Result = options.carry_out(options)
    except BrokenPipeError:
        # Whoever read stdout has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_UNDECIDED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
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
    options, unknown = parser().parse_known_args(argv)
    if unknown:
        close = difflib.get_close_matches(unknown[0].partition("=")[0], options.known, n=1)
        better = close[0] if close else f"python -m mpsnap {options.verb} --help"
        print(f"mpsnap: error: there is no option {one_line(unknown[0])}; try: {better}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    return options


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
