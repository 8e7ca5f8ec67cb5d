"""Refuse a cluster that this machine cannot hold, before anything is started, with the numbers and the remedy.

This module owns the limits of processes, descriptors and start methods. It must not start a node.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

from mpsnap.core.errors import PreflightError
from mpsnap.core.topology import Topology

#: Descriptors of the supervisor per node: result queue 2, control pipe 2, life pipe 2, pidfd, process sentinel 2.
FDS_PER_NODE = 9
#: Descriptors for everything else that the supervisor's process does.
FDS_RESERVED = 64
#: A forkserver hands at most 256 descriptors to a child in one message, and dies of more, taking the exit statuses of
#: all running nodes with it. A node needs a few besides its channels.
FORKSERVER_FDS = 240
#: The forkserver's socket lives below the temporary folder, and a socket's path ends at 108 bytes.
TMP_PATH_BYTES = 60
#: Memory of an idle node that it does not share, about. Fork's is for a cluster of thousands of channels, half of it is
#: enough with few; the others hardly depend on them.
NODE_BYTES = {"fork": 8 << 20, "forkserver": 10 << 20, "spawn": 17 << 20}
#: What every node imports first, and all that its main script may import of this package; a forkserver that has done so
#: starts nodes several times as fast.
PRELOADED = "mpsnap.runtime.cluster"


def choose_context(start_method: str | None, topology: Topology) -> tuple[BaseContext, str | None]:
    """Return the one context for a cluster, and a notice if it is not what was to be expected.

    The default is forkserver, and spawn where forkserver cannot serve this topology or this Python. Never `fork`: a
    child forked while another thread holds a lock waits for that lock for ever.

    Raises:
        PreflightError: The start method asked for does not exist here or cannot serve this topology.
    """
    available = multiprocessing.get_all_start_methods()
    if start_method is None:
        obstacle = _forkserver_obstacle(topology) if "forkserver" in available else "there is no forkserver here"
        method = "spawn" if obstacle else "forkserver"
        return _context(method), f"using spawn: {obstacle}" if obstacle else None
    if start_method not in available:
        raise PreflightError(f"no start method {start_method!r}", hint=" or ".join(available))
    if start_method == "forkserver" and (obstacle := _forkserver_obstacle(topology)):
        raise PreflightError(f"forkserver cannot start this cluster: {obstacle}", hint="start method spawn")
    return _context(start_method), None


def _context(method: str) -> BaseContext:
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        preloaded: list[str] = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]
        if PRELOADED not in preloaded:
            # What the user has asked for stays. One that runs already is left as it is: then each node does its own.
            context.set_forkserver_preload([*preloaded, PRELOADED])
    return context


def check(context: BaseContext, topology: Topology, *, allow_threads: bool) -> None:
    """Refuse what would fail half-way; raise the soft limit of descriptors if that is enough.

    Raises:
        PreflightError: Something does not fit.
    """
    _check_memory(context, topology)
    _check_descriptors(topology)
    _check_semaphores(context)
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if context.get_start_method() == "fork" and others and not allow_threads:
        raise PreflightError(
            f"fork while other threads run ({', '.join(others[:3])}) can deadlock the nodes",
            hint="start method forkserver or spawn, or allow_threads=True",
        )


def secure_standard_streams() -> None:
    """Put the null device where stdin, stdout or stderr is closed.

    Otherwise the first pipe of the cluster gets its number, and nodes, which put stderr in the place of their stdout,
    write what their hooks print into it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _forkserver_obstacle(topology: Topology) -> str | None:
    if sys.version_info < (3, 10, 9):
        return "before Python 3.10.9 any local user can run code through its socket (CVE-2022-42919)"
    degree = {node: len(topology.inbound(node)) + len(topology.outbound(node)) for node in topology.nodes}
    busiest = max(topology.nodes, key=lambda node: degree[node])
    needed = 2 * degree[busiest] + 8
    if needed > FORKSERVER_FDS:
        return f"the {degree[busiest]} channels of {busiest} need {needed} descriptors, forkserver has {FORKSERVER_FDS}"
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > TMP_PATH_BYTES:
        return f"its socket's path below {folder} would be too long, {TMP_PATH_BYTES} bytes are left for the folder"
    return None


def _check_memory(context: BaseContext, topology: Topology) -> None:
    # Here: every node whose main script imports `Cluster` imports this module, and would take a tenth longer to start.
    import psutil

    method = context.get_start_method()
    needed, available = len(topology.nodes) * NODE_BYTES[method], psutil.virtual_memory().available
    if needed > available:
        raise PreflightError(
            f"{len(topology.nodes)} node processes need about {needed >> 20} MB with {method}, "
            f"{available >> 20} MB are available",
            hint="fewer nodes",
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and len(topology.nodes) > soft:
        raise PreflightError(
            f"{len(topology.nodes)} node processes, the limit is {soft}", hint="ulimit -u, or fewer nodes"
        )


def _check_descriptors(topology: Topology) -> None:
    open_now = len(os.listdir("/proc/self/fd"))
    needed = 2 * len(topology.channels) + FDS_PER_NODE * len(topology.nodes) + FDS_RESERVED + open_now
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft or soft == resource.RLIM_INFINITY:
        return
    if needed > hard != resource.RLIM_INFINITY:
        raise PreflightError(
            f"{len(topology.channels)} channels and {len(topology.nodes)} nodes need {needed} file descriptors, "
            f"this process may have {hard}",
            hint="a higher hard limit (ulimit -Hn), or a smaller topology",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_semaphores(context: BaseContext) -> None:
    try:
        # The first one starts multiprocessing's resource tracker, which is deaf to Ctrl-C and inherits this mask: or a
        # terminal that is closed would kill it, and the next one complains of each semaphore that it never knew.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            context.Lock()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    except OSError as error:
        raise PreflightError(
            f"no semaphores here: {error}", hint="mounting /dev/shm, which some containers lack"
        ) from error
