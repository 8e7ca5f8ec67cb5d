"""`mpsnap serve`: run an app without an end, for others to see and steer."""

from __future__ import annotations

from typing import Any

from mpsnap.cli.controlling import add_place
from mpsnap.cli.options import add_verb
from mpsnap.cli.run import add_options, carry_out

DESCRIPTION = """\
Run an app, each node a process of its own, until somebody stops it. Snapshots
are triggered by `python -m mpsnap snapshot` and on a page in the browser, and
in turn if --snapshot-every says so. The page, on 127.0.0.1, opens with the
secret in the address that is printed at the start.
"""

EXAMPLES = """\
examples:
  python -m mpsnap serve   # tokens on 4 processes, and a page; Ctrl-C stops it
  python -m mpsnap serve bank --topology ring:6 --store kept --name bank
  python -m mpsnap snapshot N3 --wait   # in another terminal
"""


def add_verbs(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs, "serve", "run an app for others to see and steer", description=DESCRIPTION, examples=EXAMPLES
    )
    add_options(parser, " (default: until it is stopped)", " (default: none in turn, with --store 1)")
    group = parser.add_argument_group("where it can be found")
    add_place(group)
    group.add_argument("--no-http", dest="http", action="store_false", help="serve no page, the control socket alone")
    parser.set_defaults(carry_out=carry_out, serve=True, control=True, http=True)
