"""The text of a manifest: one for each, and nothing in it is believed that was not checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import cut
from test_part import PAYLOADS

from mpsnap.core.errors import CodecError
from mpsnap.store.manifest import Manifest, NodeEntry, Receipt, Seal, committed, content, describe, read, write

SHA = "0123456789abcdef" * 4


def plain_manifest(*, codec: str = "plain", seal: Seal | None = None, **run: Any) -> Manifest:
    snapshot = cut(3)
    entry = {
        name: NodeEntry("m:C", {"tokens": 1}, codec, node.sent, node.received, Receipt("0-0-0", 5, SHA), None)
        for name, node in snapshot.nodes.items()
    }
    made = describe(snapshot, entry, wall_time=1.5, emitted_bytes=7, run=run)
    return committed(made, Receipt("outputs", 9, SHA), seal)


@given(st.dictionaries(st.text(max_size=5), PAYLOADS | st.floats() | st.integers(-(2**70), 2**70), max_size=4))
@settings(max_examples=100)
def test_plain_data_comes_back_exactly(run: dict[str, Any]) -> None:
    """By type and in order, NaN and lone surrogates too, whether or not JSON has such."""
    text = write(plain_manifest(**run) if all(map(str.isidentifier, run)) else plain_manifest()._replace(run=run))
    again = read(text)
    assert repr(again.run) == repr(run)
    assert write(again) == text
    json.loads(text.decode("ascii"))


def test_what_json_has_stands_as_it_is() -> None:
    text = json.loads(write(plain_manifest(seed=7, top="ring:3", limits={"x": [0.5, None]}, pair=(1, 2), big=2**63)))
    assert text["run"]["limits"] == {"x": [0.5, None]}
    assert (text["run"]["seed"], text["run"]["top"]) == (7, "ring:3")
    assert list(text["run"]["pair"]) == list(text["run"]["big"]) == ["$codec"]
    assert text["topology"]["channels"] == ["A->B", "B->C", "C->A"]
    assert text["id"] == "0-A-1"


def remade(change: Callable[[dict[str, Any]], object], manifest: Manifest | None = None) -> bytes:
    """Return the text of a manifest after a change, its checksum made right again by somebody who knows how."""
    from mpsnap.store.manifest import _render

    plain = json.loads(write(manifest or plain_manifest(seed=7)))
    change(plain)
    del plain["checksum"]
    return _render(plain)


def test_who_knows_how_can_make_one() -> None:
    """Or what follows would prove nothing."""
    assert read(remade(lambda plain: plain.update(number=4))).number == 4


def put(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(plain: dict[str, Any]) -> None:
        for name in path[:-1]:
            plain = plain[name]
        assert path[-1] in plain or path[-2:-1] == ("run",)
        plain[path[-1]] = to

    return change


def each(*path: str) -> Callable[..., list[Callable[[dict[str, Any]], None]]]:
    return lambda *values: [put(*path, to=value) for value in values]


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


NAMES = [
    "..",
    ".",
    "",
    "/etc/x",
    "../LOCK",
    "a\0b",
    "%2e%2e",
    "x" * 300,
    "node-1.part",
    "node-0.state",
    "MANIFEST.json",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_text_is_never_more_than_compared(name: str) -> None:
    with pytest.raises(CodecError, match="it names a file"):
        read(remade(put("nodes", "A", "part", "name", to=name)))
    with pytest.raises(CodecError, match="it names a file"):
        read(remade(put("outputs", "name", to=name)))


@pytest.mark.parametrize(
    "change",
    [
        *each("format")(0, 2, True, 1.0, "1", None),
        *each("number")(-1, 2**63, 10**30, True, 3.0, "3", None),
        *each("id")("", "0-A", "01-A-1", "0-A-0", 5, None),
        *each("wall_time")(5, True, "1.5", None),
        *each("duration")(5, True, "0.25"),
        *each("verified")(0, 1, None),
        *each("recovery_point")(0, 1, None),
        *each("emitted_bytes")(-1, 1.0, False),
        *each("initiators")("A", ["X"], [1], None),
        *each("run")([], None, {"x": {"$codec": "!"}}, {"x": {"$codec": 5}}, {"x": {"$other": 1}}),
        put("run", "x", to={"$codec": "AQ=="}),  # 1, which JSON has
        put("run", "x", to=deep(21)),
        put("run", "x", to=2**63),
        *each("nodes")([], {}, None),
        *each("nodes", "A")(None, {}, []),
        *each("nodes", "A", "sent")({"B": -1}, {"B": True}, {"B": 2**63}, [], None),
        *each("nodes", "A", "codec")("", "json", None),
        *each("nodes", "A", "program")(5, None),
        *each("nodes", "A", "state")({}, 5, {"name": "node-0.state", "size": 1}),
        *each("nodes", "A", "part", "size")(-1, True, 5.0, 2**40, 2**63),
        *each("nodes", "A", "part", "sha256")("", SHA[:-1], SHA.upper(), "g" * 64, "\u0660" * 64),
        *each("topology", "nodes")([], ["A", "B"], ["A", "A", "B", "C"], ["../x", "B", "C"], "ABC"),
        *each("topology", "channels")(["A->X"], ["A"], ["A->B->C"], ["A->A"], ["B->C", "A->B"]),
        *each("topology", "tokens")({"A": -1}, {"A": True}, {"X": 1}, {}),
        *each("topology", "fingerprint")("", SHA, None),
        lambda plain: plain.update(more=1),
        lambda plain: plain.pop("run"),
        lambda plain: plain["nodes"].update(X=plain["nodes"]["A"]),
        lambda plain: plain["nodes"].pop("A"),
        lambda plain: plain["nodes"]["A"]["part"].update(path="x"),
    ],
)
def test_what_a_store_does_not_write_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    """Though its checksum is right."""
    with pytest.raises(CodecError, match=r"not a manifest|cannot be decoded"):
        read(remade(change))


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{}", b"[]", b"null", b"NaN", b"5", b"\xff\xfe", b'"x"', b"[" * 10**6, b'{"a":' * 10**5),
        b"9" * 10**5,
        b'{"number": 1e999}',
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_manifest_at_all_is_refused(text: bytes) -> None:
    with pytest.raises(CodecError, match="not a manifest"):
        read(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"number": 3', b'"number":  3'),
        (b'"number": 3', b'"number": 3, "number": 3'),
        (b'"number": 3', b'"number": 4, "number": 3'),
        (b'"number": 3', b'"number": 3\n'),
        (b'"number": 3', b'"number": 4'),
        (b'"wall_time": 1.5', b'"wall_time": 15e-1'),
        (b'"wall_time": 1.5', b'"wall_time": 1.50'),
        (b'"A->B"', b'"A-\\u003eB"'),
        (b'"checksum": "', b'"checksum": "0'),
        (b"\n}", b"\n} "),
        (b"{", b"\xef\xbb\xbf{"),
    ],
)
def test_there_is_one_text_for_a_manifest(old: bytes, new: bytes) -> None:
    """So what a reader might overlook, a second key above all, is damage."""
    text = write(plain_manifest(seed=7))
    assert old in text
    with pytest.raises(CodecError, match="not a manifest"):
        read(text.replace(old, new))


def test_every_flipped_bit_is_found() -> None:
    text = write(plain_manifest(seed=7))
    for place in range(len(text)):
        spoiled = bytearray(text)
        spoiled[place] ^= 1 << place % 8
        with pytest.raises(CodecError):
            read(bytes(spoiled))


def test_nan_is_no_time() -> None:
    with pytest.raises((CodecError, ValueError)):
        write(plain_manifest()._replace(wall_time=math.nan))


# --- The seal. ---


def seal_of(told: bytes) -> str:
    return sha256(b"sealed" + told).hexdigest()


def sealed_manifest() -> Manifest:
    return plain_manifest(codec="pickle", seal=seal_of, seed=7)


def test_a_seal_is_over_all_that_the_text_says() -> None:
    """The receipts of all files too, under the names that they have in the store."""
    text = write(sealed_manifest())
    again = read(text)
    assert again.seal == seal_of(content(again))
    assert write(again) == text
    without = json.loads(text)
    del without["seal"], without["checksum"]
    assert json.loads(content(again)) == without
    assert [receipt.name for receipt in again.files()] == ["node-0.part", "node-1.part", "node-2.part", "outputs"]


@pytest.mark.parametrize("field", [name for name in Manifest._fields if name not in ("seal", "topology", "nodes")])
def test_no_field_can_be_changed_under_a_seal(field: str) -> None:
    manifest = sealed_manifest()
    other = {"number": 9, "wall_time": 2.5, "verified": False, "initiators": ("C",), "run": {}, "recovery_point": True}
    changed = manifest._replace(**{field: other.get(field)})  # type: ignore[arg-type]
    if field == "id":
        changed = manifest._replace(id=manifest.id._replace(n=99))
    assert content(changed) != content(manifest)
    assert seal_of(content(changed)) != manifest.seal


def test_a_manifest_without_a_seal_is_written_as_ever() -> None:
    """So are those without pickles, and those from before there were seals, with and without."""
    for codec in ("plain", "pickle"):
        text = write(plain_manifest(codec=codec))
        assert b"seal" not in text
        assert read(text).seal is None


def test_what_was_sealed_before_is_not_taken_over() -> None:
    assert committed(sealed_manifest(), None).seal is None


@pytest.mark.parametrize("seal", ["", SHA[:-1], SHA + "0", SHA.upper(), "g" * 64, "\u0660" * 64, 5, None, True])
def test_what_is_no_seal_is_refused(seal: object) -> None:
    assert read(remade(put("seal", to=SHA), sealed_manifest())).seal == SHA
    with pytest.raises(CodecError, match="not a manifest"):
        read(remade(put("seal", to=seal), sealed_manifest()))


def test_a_seal_where_there_are_no_pickles_is_refused() -> None:
    with pytest.raises(CodecError, match="it has a seal, and no node that keeps pickles"):
        read(remade(lambda plain: plain.update(seal=SHA)))
    with pytest.raises(CodecError, match="it has a seal"):
        write(plain_manifest(seal=seal_of))


def test_every_flipped_bit_of_a_seal_is_found() -> None:
    text = write(sealed_manifest())
    begin = text.index(b'"seal"')
    for place in range(begin, begin + 80):
        spoiled = bytearray(text)
        spoiled[place] ^= 1 << place % 8
        with pytest.raises(CodecError):
            read(bytes(spoiled))
