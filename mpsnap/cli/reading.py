"""`mpsnap list`, `show`, `diff`, `verify` and `prune`: what is in a store of snapshots.

This module owns these verbs. All but `prune` only look: they take no lock, change nothing, unpickle nothing and import
none of the user's code, so they are right beside a run that writes, and for a store from elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from mpsnap.cli.options import add_verb, positive, whole
from mpsnap.cli.show import Result, write_out
from mpsnap.core.errors import (
    CodecError,
    ConsistencyError,
    InputError,
    MpsnapError,
    SnapshotCorrupt,
    StoreError,
)
from mpsnap.core.jsonform import to_json
from mpsnap.core.path import look_up, parse_path
from mpsnap.core.snapshot import GlobalSnapshot
from mpsnap.core.words import listed, shown, suggestion
from mpsnap.store.directory import DirectoryStore
from mpsnap.store.opening import StoredSnapshots, open_store
from mpsnap.views.difference import diff_table
from mpsnap.views.document import (
    channel_document,
    diff_document,
    listed_document,
    node_document,
    snapshot_document,
    verdict_document,
)
from mpsnap.views.reading import (
    Listed,
    channel_table,
    kept_line,
    listing_table,
    node_table,
    value_table,
    values_table,
    verdict_table,
)
from mpsnap.views.tables import snapshot_table

T = TypeVar("T")

LIST_EXAMPLES = """\
status:
  recovery  the cut is proven, and a cluster can go on from it
  verified  the cut is proven
  UNPROVEN  the cut was not proven when it was kept
  DAMAGED   what it says of itself cannot be read; `verify` reads everything

examples:
  python -m mpsnap list kept
  python -m mpsnap list kept --format json
"""

SHOW_EXAMPLES = """\
paths:
  balance          the entry "balance" of a dict, or the field of that name
  a.b[3]["a key"]  step by step: entries, fields, indices; keys of any plain type
  seen{7}          the element 7 of a set
  [0].amount       of --channel: of the oldest message

examples:
  python -m mpsnap show kept
  python -m mpsnap show kept 3 --node N1
  python -m mpsnap show kept 3 --node N1 --path 'tokens'
  python -m mpsnap show kept latest --path tokens
  python -m mpsnap show kept latest --channel N1:N2 --full
  python -m mpsnap show kept --format json
"""

DIFF_EXAMPLES = """\
Lists are compared index by index. Messages are told by their numbers on their channel: those that left it were received
in between, those that entered it were sent in between and are still on their way.

examples:
  python -m mpsnap diff kept 0 1
  python -m mpsnap diff kept 0 latest --full
  python -m mpsnap diff kept 0 latest --format json
"""

VERIFY_EXAMPLES = """\
exit status: 0 if every snapshot is what was committed and its cut is consistent, 1 if one is not

examples:
  python -m mpsnap verify kept
  python -m mpsnap verify kept latest
"""

PRUNE_EXAMPLES = """\
Never removed are the newest snapshot that a cluster can go on from, and those that cannot be read.

examples:
  python -m mpsnap prune kept --keep 2
"""


def add_verbs(verbs: Any) -> None:
    """Add the verbs to the command line."""
    what = "List the snapshots of a store: what each says of itself."
    parser = _add(verbs, "list", "list the snapshots of a store", what, LIST_EXAMPLES, _list)
    what = "Show a snapshot of a store, or one node, channel or value of it."
    parser = _add(verbs, "show", "show a snapshot of a store, or a part of it", what, SHOW_EXAMPLES, _show)
    _add_number(parser, "number", "which snapshot, by its number, or latest (default)", optional=True)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--node", metavar="NODE", help="one node: its state, timers and counts")
    part.add_argument("--channel", metavar="SRC:DST", type=_channel, help="one channel: its messages in flight")
    parser.add_argument("--path", metavar="PATH", help="what is at a place of a state, or among a channel's messages")
    parser.add_argument("--full", action="store_true", help="nothing is shortened or left out")
    what = "Show how one snapshot of a store differs from another."
    parser = _add(verbs, "diff", "show how two snapshots of a store differ", what, DIFF_EXAMPLES, _diff)
    _add_number(parser, "first", "the number of a snapshot, or latest")
    _add_number(parser, "second", "the number of another one, or latest")
    parser.add_argument("--full", action="store_true", help="nothing is shortened or left out")
    what = "Test the checksums of snapshots, look at every value in them and prove their cuts."
    parser = _add(verbs, "verify", "test the snapshots of a store", what, VERIFY_EXAMPLES, _verify)
    _add_number(parser, "number", "one snapshot, by its number, or latest (default: all)", optional=True)
    what = "Remove all but the newest snapshots of a store that no run is using."
    parser = _add(verbs, "prune", "remove old snapshots of a store", what, PRUNE_EXAMPLES, _prune)
    parser.add_argument("--keep", metavar="N", type=positive, required=True, help="how many of the newest stay")


def _add(
    verbs: Any,
    name: str,
    brief: str,
    description: str,
    examples: str,
    carry_out: Callable[[argparse.Namespace], Result],
) -> argparse.ArgumentParser:
    parser = add_verb(verbs, name, brief, description=description, examples=examples)
    parser.add_argument("store", metavar="DIR", help="the store's directory")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of stdout (default table)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(carry_out=carry_out)
    return parser


def _add_number(parser: argparse.ArgumentParser, name: str, told: str, optional: bool = False) -> None:
    metavar = "N" if name == "number" else {"first": "A", "second": "B"}[name]
    parser.add_argument(name, metavar=metavar, nargs="?" if optional else None, type=_number, help=told)


def _number(text: str) -> int | str:
    return text if text == "latest" else whole(text)


def _channel(text: str) -> tuple[str, str]:
    src, colon, dst = text.replace("->", ":").partition(":")
    if not (src and colon and dst):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not of the form SRC:DST")
    return src, dst


# --------------------------------------------------------------------------- list


def _list(options: argparse.Namespace) -> Result:
    with _opened(options) as store:
        snapshots = _still_there(
            lambda: [entry for number in _numbers(store, options) if (entry := _listed(store, number)) is not None]
        )
    _write(
        options,
        lambda: {"snapshots": [listed_document(*entry) for entry in snapshots]},
        lambda: listing_table(snapshots),
    )
    damaged = [entry.error for entry in snapshots if entry.error is not None]
    if not damaged:
        return Result(None, False)
    first = damaged[0]
    what = f"{len(damaged)} of {len(snapshots)} snapshots cannot be read: {first.what}" if damaged[1:] else first.what
    return Result(StoreError(what, where=first.where, hint=f"python -m mpsnap verify {options.store}"), False)


def _listed(store: StoredSnapshots, number: int) -> Listed | None:
    """Return what is known of a snapshot; None if it was removed meanwhile."""
    try:
        return Listed(number, store.manifest(number), None)
    except StoreError as error:
        return Listed(number, None, error) if number in store.numbers() else None


# --------------------------------------------------------------------------- show


def _show(options: argparse.Namespace) -> Result:
    if options.path is not None:
        # Before anything is read: what is wrong with it is wrong whatever is in the store.
        parse_path(options.path)
    wanted = "latest" if options.number is None else options.number
    with _opened(options) as store:
        manifest, snapshot = _read(store, options, wanted, lambda number: (store.manifest(number), store[number]))
        with _naming_the_file(store, options, snapshot):
            if options.node is not None:
                _show_node(options, snapshot)
            elif options.channel is not None:
                _show_channel(options, snapshot)
            elif options.path is not None:
                _show_everywhere(options, snapshot)
            else:
                _write(
                    options,
                    lambda: {"snapshot": snapshot_document(snapshot)},
                    lambda: f"{snapshot_table(snapshot, full=options.full)}{kept_line(manifest)}\n",
                )
    return Result(None, False)


def _show_node(options: argparse.Namespace, snapshot: GlobalSnapshot) -> None:
    if options.node not in snapshot.nodes:
        raise InputError(
            f"there is no node {shown(options.node)} in snapshot {snapshot.number}",
            where=f"--node {options.node}",
            hint=suggestion(options.node, snapshot.nodes),
        )
    node = snapshot.nodes[options.node]
    if options.path is not None:
        _show_value(options, snapshot, look_up(node.state, options.path, node.name), {"node": node.name})
    else:
        _write(
            options,
            lambda: {"snapshot": _named(snapshot), "node": {"name": node.name, **node_document(node)}},
            lambda: node_table(snapshot, node, options.full),
        )


def _show_channel(options: argparse.Namespace, snapshot: GlobalSnapshot) -> None:
    src, dst = options.channel
    if (src, dst) not in snapshot.topology.channels:
        known = [f"{channel.src}:{channel.dst}" for channel in snapshot.topology.channels]
        raise InputError(
            f"there is no channel {shown(f'{src}->{dst}')} in snapshot {snapshot.number}",
            where=f"--channel {src}:{dst}",
            hint=suggestion(f"{src}:{dst}", known) or "a topology with channels",
        )
    if options.path is not None:
        value = look_up(snapshot.channels[src, dst], options.path, f"{src}->{dst}")
        _show_value(options, snapshot, value, {"src": src, "dst": dst})
    else:
        _write(
            options,
            lambda: {"snapshot": _named(snapshot), "channel": channel_document(snapshot, src, dst)},
            lambda: channel_table(snapshot, src, dst, options.full),
        )


def _show_value(
    options: argparse.Namespace, snapshot: GlobalSnapshot, value: object, place: Mapping[str, object]
) -> None:
    _write(
        options,
        lambda: {"snapshot": _named(snapshot), **place, "path": options.path, "value": to_json(value)},
        lambda: value_table(value, options.full),
    )


def _show_everywhere(options: argparse.Namespace, snapshot: GlobalSnapshot) -> None:
    """Show what is at a path of every node; an error only if no node has it."""
    values, missing, refusal = {}, [], None
    for name, node in snapshot.nodes.items():
        try:
            values[name] = look_up(node.state, options.path, name)
        except InputError as error:
            refusal = refusal or error
            missing.append(name)
    if not values and refusal is not None:
        raise refusal
    _write(
        options,
        lambda: {
            "snapshot": _named(snapshot),
            "path": options.path,
            "values": {name: to_json(value) for name, value in values.items()},
        },
        lambda: values_table(values, missing, options.full),
    )


def _named(snapshot: GlobalSnapshot) -> dict[str, object]:
    return {"number": snapshot.number, "id": str(snapshot.id)}


# --------------------------------------------------------------------- diff and verify


def _diff(options: argparse.Namespace) -> Result:
    with _opened(options) as store:
        old = _read(store, options, options.first, store.load)
        new = _read(store, options, options.second, store.load)
        with _naming_the_file(store, options, old, new):
            difference = old.diff(new)
            _write(
                options,
                lambda: {"diff": diff_document(difference)},
                lambda: diff_table(old, new, difference, options.full),
            )
    return Result(None, False)


def _verify(options: argparse.Namespace) -> Result:
    with _opened(options) as store:
        verdicts = _still_there(lambda: _verdicts(store, options))
    _write(
        options,
        lambda: {"verdicts": [verdict_document(*verdict) for verdict in verdicts]},
        lambda: verdict_table(verdicts),
    )
    failed = [error for _, error in verdicts if error is not None]
    if not failed:
        return Result(None, False)
    proven = [error for error in failed if isinstance(error, SnapshotCorrupt | ConsistencyError)]
    kind = ConsistencyError if proven else StoreError
    first = (proven or failed)[0]
    what = f"{len(failed)} of {len(verdicts)} snapshots failed: {first.what}"
    return Result(kind(what, where=first.where, hint=first.hint), False)


def _verdicts(store: StoredSnapshots, options: argparse.Namespace) -> list[tuple[int, MpsnapError | None]]:
    if options.number is None:
        numbers = _numbers(store, options)
    else:
        numbers = (_read(store, options, options.number, lambda number: number),)
    return [(number, error) for number in numbers for error in _verdict(store, number)]


def _verdict(store: StoredSnapshots, number: int) -> Iterator[MpsnapError | None]:
    """Yield what is wrong with a snapshot, or None; nothing of one that was removed meanwhile."""
    try:
        store.verify(number)
        yield None
    except MpsnapError as error:
        if number in store.numbers():
            yield error


# --------------------------------------------------------------------------- prune


def _prune(options: argparse.Namespace) -> Result:
    # Opened to be read first: a store to be written is made where there is none.
    with _opened(options):
        pass
    with DirectoryStore(options.store) as store:
        removed = store.retain(options.keep)
        kept = store.numbers()
    _write(
        options,
        lambda: {"removed": list(removed), "kept": list(kept)},
        lambda: f"removed {_some(removed)}; kept {_some(kept)}\n",
    )
    return Result(None, False)


def _some(numbers: Iterable[int]) -> str:
    return listed(map(str, numbers)) or "none"


# ------------------------------------------------------------------------- in common


def _opened(options: argparse.Namespace) -> StoredSnapshots:
    try:
        return open_store(options.store)
    except InputError:
        raise
    except StoreError as error:
        raise InputError(error.what, where=error.where, hint=error.hint) from error


def _numbers(store: StoredSnapshots, options: argparse.Namespace) -> tuple[int, ...]:
    """Return the numbers of what is there, which is something."""
    numbers = store.numbers()
    if not numbers:
        raise InputError("this store has no snapshots", where=options.store, hint="a store of a run that has taken one")
    return numbers


def _still_there(look: Callable[[], list[T]]) -> list[T]:
    """Return what a look finds, which is something: if all that was there is removed meanwhile, of the next look."""
    while not (found := look()):
        pass
    return found


def _read(store: StoredSnapshots, options: argparse.Namespace, wanted: int | str, read: Callable[[int], T]) -> T:
    """Return what is read of a snapshot; if that is the latest and is removed meanwhile, of the one that is then."""
    while True:
        numbers = _numbers(store, options)
        if wanted != "latest" and wanted not in numbers:
            raise InputError(
                f"there is no snapshot {wanted} in this store",
                where=options.store,
                hint=f"{listed(map(str, reversed(numbers)))}, or latest",
            )
        number = numbers[-1] if isinstance(wanted, str) else wanted
        try:
            return read(number)
        except StoreError:
            # If it was removed meanwhile, the next look says what is there.
            if number in store.numbers():
                raise


@contextlib.contextmanager
def _naming_the_file(store: StoredSnapshots, options: argparse.Namespace, *snapshots: GlobalSnapshot) -> Iterator[None]:
    """Say of a value that cannot be read in which file it is; values are read when they are looked at."""
    try:
        yield
    except CodecError as error:
        for snapshot in snapshots:
            if snapshot.number in store.numbers():
                store.verify(snapshot.number)
        raise SnapshotCorrupt(error.what, where=error.where or options.store, hint=error.hint) from error


def _write(options: argparse.Namespace, document: Callable[[], dict[str, Any]], text: Callable[[], str]) -> None:
    if options.format == "json":
        write_out(json.dumps(document(), allow_nan=False) + "\n")
    else:
        write_out(text())
