"""The options of a run that others can see and steer, and what becomes of them.

This module owns the way from these options to a `Control`, and every refusal on that way.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from mpsnap.cli.conduct import Conductor
from mpsnap.cli.options import Work, whole
from mpsnap.cli.show import Show
from mpsnap.core.errors import InputError
from mpsnap.runtime.supervisor import Supervisor
from mpsnap.server.control import Control

_MOST_PORT = 65_535


def add_control(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run that can be seen and steered if one wishes."""
    group = parser.add_argument_group("who may look on and steer")
    group.add_argument(
        "--control", action="store_true", help="let `status`, `snapshot`, `top` and the like reach this run"
    )
    group.add_argument("--http", action="store_true", help="serve a page of it on 127.0.0.1, too")
    add_place(group)


def add_place(group: Any) -> None:
    """Add the options that say where it can be found."""
    group.add_argument("--name", metavar="NAME", help="what it is called (default: the app's name and a number)")
    group.add_argument("--port", type=port, default=0, metavar="N", help="of the page (default: any that is free)")


def port(text: str) -> int:
    """Read the number of a port, 0 for any."""
    return whole(text, most=_MOST_PORT)


def check_control(options: argparse.Namespace) -> None:
    """Refuse options that make no sense without others.

    Raises:
        InputError: There is one.
    """
    options.control = options.control or options.http
    if options.port and not options.http:
        raise InputError("--port does not go without a page", hint="--http")
    if options.name is not None and not options.control:
        raise InputError("--name does not go without --control", hint="--control")


@contextlib.contextmanager
def controlled(
    options: argparse.Namespace, work: Work, supervisor: Supervisor, conductor: Conductor, show: Show
) -> Iterator[Control | None]:
    """Yield what lets others see and steer this run, None if nobody may.

    Raises:
        InputError: The name or the port is taken.
    """
    if not options.control:
        yield None
        return
    facts = {
        "app": work.app.name,
        "topology": work.topology.name,
        "start_method": supervisor.start_method,
        "seed": options.seed,
        "store": None if options.store is None else os.path.abspath(options.store),
    }
    control = Control(
        supervisor,
        facts,
        name=options.name or _default_name(work.app.name),
        port=options.port if options.http else None,
        stop=conductor.stop,
        tell=show.narrate,
    )
    try:
        page = "" if control.address is None else f"; its page: {control.address}"
        show.narrate(f"this run is called {control.name}{page}")
        yield control
    finally:
        control.close(conductor.error)


def _default_name(app: str) -> str:
    """Return a name that no other run has: of a class in a file, the class's name."""
    word = re.sub(r"[^A-Za-z0-9_-]+", "-", re.split(r"[:/.]", app)[-1]).strip("-")[:24] or "run"
    return f"{word}-{os.getpid()}"
