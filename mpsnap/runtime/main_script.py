"""What the main script of a program must be for its cluster to be started.

This module owns these two refusals. It must not know clusters.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping

from mpsnap.core.errors import AppError
from mpsnap.core.program import Program
from mpsnap.runtime.incarnation import EXIT_NO_MAIN_GUARD


def refuse_to_start_in_a_node() -> None:
    """Stop a node process whose import of the user's script has come to the start of a cluster."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # An exception would print one traceback a node; the exit status lets the supervisor say it once.
        os._exit(EXIT_NO_MAIN_GUARD)


def refuse_what_a_session_cannot_ship(programs: Mapping[str, Program], start_method: str) -> None:
    """Refuse classes that a new process cannot import from where they are.

    Raises:
        AppError: There are some.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    if start_method == "fork" or (file is not None and os.path.exists(file)):
        return
    if file is not None:
        # "<stdin>", for one; every new process would try to run it.
        raise AppError(
            f"the main script is {file}, which {start_method} cannot import again in the nodes",
            hint="start_method='fork', or the script in a file",
        )
    for program in programs.values():
        if program.reference.startswith("__main__:"):
            raise AppError(
                f"{program.reference} comes from an interactive session, which {start_method} cannot import",
                hint="start_method='fork', or the class in a file",
            )
