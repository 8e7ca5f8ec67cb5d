"""Text that comes in, and text that goes out: lines and numbers of input files, words in errors.

This module owns how a line-based input file is read, which `.top` files and `.events` scripts share, what a whole
number is there, and how names and values found in an input stand in an error. It must not know what any of them means,
or how bytes come out of a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Final

from mpsnap.core.errors import InputError

#: Largest input file, in bytes, and longest line, in characters.
MAX_FILE_BYTES: Final = 64 << 20
MAX_LINE: Final = 4096
#: Numbers in files are below this, so that any program can hold them.
MAX_NUMBER: Final = 1 << 63

#: What a whole number looks like.
WHOLE: Final = re.compile(r"0|[1-9][0-9]*")
_LONE_CR: Final = re.compile(r"\r(?!\n)")
_ODD_SPACE: Final = re.compile(r"[^\S \t]")
_BOMS: Final = (
    (b"\xef\xbb\xbf", "UTF-8"),
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
# Comparing a word with this many names takes about a tenth of a second; an error may not take longer than the parsing.
_MAX_COMPARED: Final = 10_000


def significant_lines(data: bytes, source: str, error: type[InputError]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line that has any, comments left out.

    Lines end in LF or CRLF and are numbered from 1; fields are separated by spaces and tabs; a comment goes from `#` to
    the end of its line. The whole file is looked at before the first line comes out.

    Args:
        data: What the file holds.
        source: What to call it in errors.
        error: The class to raise.

    Raises:
        InputError: As `error`. The file is larger than 64 MiB, starts with a byte order mark, is not UTF-8, holds a NUL
            or a CR that ends no line, a line is longer than 4096 characters, or fields are separated by anything else.
            `where` is file:line, except for a file too large.
    """
    if len(data) > MAX_FILE_BYTES:
        raise error(f"the file has {len(data):,} bytes, more than the {MAX_FILE_BYTES:,} allowed", where=source)
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            raise error(
                f"the file starts with a byte order mark (BOM) of {encoding}",
                where=f"{source}:1",
                hint="saving it as plain UTF-8 without BOM",
            )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise error(
            f"the file is not UTF-8: byte 0x{data[problem.start]:02x}",
            where=f"{source}:{line}",
            hint="saving it as plain UTF-8",
        ) from None
    nul = text.find("\0")
    if nul >= 0:
        raise error("the line holds a NUL character", where=f"{source}:{text.count(chr(10), 0, nul) + 1}")
    # Also in a comment: what such a file shows as its next line would silently be part of it.
    if lone := _LONE_CR.search(text):
        line = text.count("\n", 0, lone.start()) + 1
        raise error("the line holds a CR that ends no line", where=f"{source}:{line}", hint="line ends of LF or CR LF")
    # One line at a time: a list of all would take 8 bytes per line of a file of nothing but line ends.
    start, number = 0, 0
    while start < len(text):
        end = text.find("\n", start)
        if end < 0:
            end = len(text)
        number += 1
        if end - start > MAX_LINE:
            raise error(
                f"the line has {end - start:,} characters, more than the {MAX_LINE:,} allowed",
                where=f"{source}:{number}",
            )
        body = text[start:end].partition("#")[0].removesuffix("\r")
        start = end + 1
        # `split` separates at any white space of Unicode, which nobody can tell from a space by looking.
        if not body.isprintable() and (odd := _ODD_SPACE.search(body)):
            raise error(
                f"the line holds the white space U+{ord(odd[0]):04X}",
                where=f"{source}:{number}",
                hint="spaces or tabs between the fields",
            )
        if fields := body.split():
            yield number, fields


def whole_number(text: str, *, least: int = 0, most: int = MAX_NUMBER - 1) -> int:
    """Return the number that a text of ASCII digits stands for.

    Raises:
        ValueError: It is anything else or out of range. The message is what the number must be, and what it is, to be
            put behind "... must be".
    """
    rule = "a whole number" + (f" >= {least}" if least else "")
    if not WHOLE.fullmatch(text):
        if re.fullmatch(r"0[0-9]+", text):
            rule += " without leading zeros"
        elif re.fullmatch(r"-[0-9]+", text):
            rule = f"a whole number >= {least}"
        raise ValueError(f"{rule}, not {shown(text)}")
    # By length first: a number of a million digits takes long to convert, and Python refuses it in another way.
    if len(text) > len(str(most)) or int(text) > most:
        raise ValueError(f"at most {most}, not {shortened(text)}")
    if int(text) < least:
        raise ValueError(f"{rule}, not {text}")
    return int(text)


def suggestion(word: str, known: Iterable[str], *, otherwise: str | None = None) -> str | None:
    """Return a hint for a word that is not among the known ones: the closest of them, or the first few.

    Args:
        word: What was found.
        known: What could have been meant.
        otherwise: The hint if nothing is close; without it, the first few known ones.
    """
    names = tuple(known)
    if len(word) <= 64 and len(names) <= _MAX_COMPARED:
        # In another case first: to difflib, n1 and N1 have nothing in common.
        folded = word.casefold()
        close = [name for name in names if name.casefold() == folded] or get_close_matches(word, names)
        if close:
            return " or ".join(close)
    return listed(names) if otherwise is None else otherwise


def listed(names: Iterable[str]) -> str:
    """Return the first few names as text, and how many more there are."""
    every = tuple(names)
    more = f" and {len(every) - 8} more" if len(every) > 8 else ""
    return ", ".join(every[:8]) + more


def shown(value: object) -> str:
    """Return a value found in the input as it can stand in an error: quoted, on one line, not too long."""
    return repr(value if not isinstance(value, str) else shortened(value))


def shortened(text: str) -> str:
    """Return a text, cut where nobody would read on."""
    return text if len(text) <= 80 else text[:77] + "..."
