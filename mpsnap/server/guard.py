"""The door of the HTTP server: who is let in with what, and the headers that every answer bears.

This module owns these rules. It must not know what is behind the door, nor how connections are held to limits.

Everybody on this machine reaches the port, and so does every web page that a browser on it has open. Hence:

- A request is answered only if it names this server as its host: a name that was rebound to 127.0.0.1 is not ours.
- What comes from another origin is refused, whatever it asks for; no answer permits another origin anything.
- All data, and all that changes something, needs the token of the run; only the page's files are free, and hold none.
- Only POST changes anything, and a form of another page cannot send what it must bear.

The checks are in `CHECKS`, in the order in which they are made: who asks comes before what is asked for.
"""

from __future__ import annotations

import hmac
import json
import math
import re
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from mpsnap.core.errors import InputError, MpsnapError, one_line
from mpsnap.views.document import error_document

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Of a request: bytes of its target and headers, the number of headers, bytes of its body, levels in its JSON.
MOST_HEAD_BYTES = 16 * 1024
MOST_HEADERS = 64
MOST_BODY_BYTES = 64 * 1024
MOST_LEVELS = 64
#: Where a request's JSON object is found, behind the door, in its scope.
OBJECT = "mpsnap.object"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: On every answer. There is none that permits another origin anything, nor ever may be.
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
#: What 64 bits hold, with a sign or without.
_LEAST_NUMBER, _MOST_NUMBER = -(1 << 63), (1 << 64) - 1


class Refused(MpsnapError):
    """Refuse a request, with this status and these headers."""

    def __init__(
        self, status: int, what: str, *, hint: str | None = None, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(what, hint=hint)
        self.status = status
        self.headers = headers


class Gone(Exception):
    """Whoever asked has gone: there is nobody to answer."""


class Way(NamedTuple):
    """What may be asked for at a path."""

    path: re.Pattern[str]
    #: GET, with which HEAD is allowed too, or POST.
    method: str
    #: Whether no token is needed.
    free: bool = False
    #: Parameters that it takes in its query.
    query: frozenset[str] = frozenset()


class Rules(NamedTuple):
    """What a server holds requests to."""

    port: int
    token: str
    ways: Sequence[Way]


class Head(NamedTuple):
    """A request before its body."""

    method: str
    path: str
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    rules: Rules

    def values(self, name: bytes) -> list[bytes]:
        """Return all values of a header, each as it came."""
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def way(self) -> Way | None:
        """What its path leads to."""
        return next((way for way in self.rules.ways if way.path.match(self.path)), None)


# -------------------------------------------------------------------------- the checks


def _is_of_bounded_size(head: Head) -> None:
    size = len(head.path) + len(head.query) + sum(len(name) + len(value) for name, value in head.headers)
    if size > MOST_HEAD_BYTES or len(head.headers) > MOST_HEADERS:
        raise Refused(431, f"more than {MOST_HEAD_BYTES} bytes or {MOST_HEADERS} lines of headers")


def _names_this_host(head: Head) -> None:
    hosts = head.values(b"host")
    if len(hosts) != 1 or hosts[0] not in _names(head.rules.port):
        raise Refused(403, "the Host of the request is not this server", hint=_address(head))


def _comes_from_here(head: Head) -> None:
    own = [b"http://" + name for name in _names(head.rules.port)]
    if any(origin not in own for origin in head.values(b"origin")):
        raise Refused(403, "the request comes from another origin", hint=_address(head))


def _was_not_led_here(head: Head) -> None:
    if any(site not in (b"same-origin", b"none") for site in head.values(b"sec-fetch-site")):
        raise Refused(403, "the request comes from another site", hint=f"{_address(head)}, typed or pasted")


def _is_for_something(head: Head) -> None:
    if head.way is None:
        raise Refused(404, "there is nothing at this path", hint=_address(head))


def _is_allowed_there(head: Head) -> None:
    assert head.way is not None
    allowed = ("GET", "HEAD") if head.way.method == "GET" else (head.way.method,)
    if head.method not in allowed:
        allow = ", ".join(allowed)
        raise Refused(405, "this path does not take this method", hint=allow, headers=[(b"allow", allow.encode())])


def _bears_the_token(head: Head) -> None:
    assert head.way is not None
    if head.way.free:
        return
    given = head.values(b"authorization")
    scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), head.rules.token.encode()):
        raise Refused(
            401,
            "the token of the run is missing or wrong",
            hint="the address that was printed when the run began",
            headers=[(b"www-authenticate", b'Bearer realm="mpsnap"')],
        )


def _asks_what_is_known(head: Head) -> None:
    assert head.way is not None
    # Nobody's token is looked for here: it is no parameter that any path knows.
    given = [name for name, _ in parse_qsl(head.query.decode("latin-1"), keep_blank_values=True)]
    if len(set(given)) != len(given) or not head.way.query.issuperset(given):
        known = ", ".join(sorted(head.way.query))
        hint = f"{known}, each once" if known else "the path alone"
        raise Refused(400, "a parameter in the address that is not known here", hint=hint)


def _sends_json(head: Head) -> None:
    if head.method != "POST":
        return
    kinds = [b"".join(kind.lower().split()) for kind in head.values(b"content-type")]
    if len(kinds) != 1 or kinds[0] not in (b"application/json", b"application/json;charset=utf-8"):
        raise Refused(415, "the body must be JSON", hint="Content-Type: application/json")
    if any(coding.lower() != b"identity" for coding in head.values(b"content-encoding")):
        raise Refused(415, "the body must not be compressed")


def _sends_little(head: Head) -> None:
    if any(not length.isdigit() or len(length) > 9 or int(length) > MOST_BODY_BYTES for length in _lengths(head)):
        raise _too_large()


CHECKS: tuple[Callable[[Head], None], ...] = (
    _is_of_bounded_size,
    _names_this_host,
    _comes_from_here,
    _was_not_led_here,
    _is_for_something,
    _is_allowed_there,
    _bears_the_token,
    _asks_what_is_known,
    _sends_json,
    _sends_little,
)


def check(head: Head) -> None:
    """Return if the request may come in as far as it is known by now.

    Raises:
        Refused: It may not.
    """
    for each in CHECKS:
        each(head)


def _names(port: int) -> tuple[bytes, ...]:
    # A browser does not name the port that it would use anyway.
    suffix = "" if port == 80 else f":{port}"
    return tuple(f"{name}{suffix}".encode() for name in ("127.0.0.1", "localhost"))


def _address(head: Head) -> str:
    return f"http://{_names(head.rules.port)[0].decode()}/"


def _lengths(head: Head) -> list[bytes]:
    return head.values(b"content-length")


def _too_large() -> Refused:
    return Refused(413, f"a body of more than {MOST_BODY_BYTES} bytes")


# ---------------------------------------------------------------------------- the body


async def read_object(receive: Receive) -> dict[str, Any]:
    """Return the body of a request, which is a JSON object.

    Raises:
        Refused: It is none, or too large.
        Gone: It did not arrive.
    """
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        body += message.get("body", b"")
        if len(body) > MOST_BODY_BYTES:
            raise _too_large()
        more = message.get("more_body", False)
    return parsed_object(bytes(body))


def parsed_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is.

    Raises:
        Refused: It is none.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body must be a JSON object")
    if not _is_plain(value, MOST_LEVELS):
        raise Refused(400, f"the body has numbers beyond 64 bits, or more than {MOST_LEVELS} levels")
    return value


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _is_plain(value: Any, levels: int) -> bool:
    # What the link to the supervisor cannot carry is the fault of whoever asks, and told here.
    if isinstance(value, (dict, list)):
        inside = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_is_plain(each, levels - 1) for each in inside)
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or _LEAST_NUMBER <= value <= _MOST_NUMBER


# ---------------------------------------------------------------------------- the door


class Guard:
    """Let in what the rules allow, and put every error into an answer.

    Args:
        behind: The application behind the door; what it raises is answered here.
        rules: What requests are held to.
    """

    def __init__(self, behind: ASGIApp, rules: Rules) -> None:
        self._behind = behind
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            # There are no WebSockets here, and nothing to begin or to end.
            raise Refused(403, f"no {scope['type']} is served")
        answer = _Answer(send)
        try:
            check(Head(scope["method"], scope["path"], scope["query_string"], scope["headers"], self._rules))
            if scope["method"] == "POST":
                scope[OBJECT] = await read_object(receive)
            await self._behind(scope, receive, answer.send)
        except Gone:
            pass
        except Refused as error:
            await answer.refuse(error)
        except MpsnapError as error:
            # What a path names and is not there, what was asked for and makes no sense, what cannot be done now.
            status = 409 if not isinstance(error, InputError) else 404 if scope.get("path_params") else 400
            await answer.refuse(error, status)
        except Exception as error:
            await answer.fail(error)


class _Answer:
    """Send one answer, with the headers that every answer bears."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await self._send(message)

    async def refuse(self, error: MpsnapError, status: int = 400) -> None:
        document = {"error": error_document(error)}
        if isinstance(error, Refused):
            await self._write(error.status, document, error.headers)
        else:
            await self._write(status, document)

    async def fail(self, error: Exception) -> None:
        """Tell that something went wrong, and tell what to nobody but who can read stderr."""
        number = secrets.token_hex(4)
        sys.stderr.write("\n".join(_story(number, error)) + "\n")
        sys.stderr.flush()
        told = {"what": f"an unexpected error, {number}", "where": None, "try": "stderr of the run, by this number"}
        await self._write(500, {"error": told, "id": number})

    async def _write(self, status: int, document: dict[str, Any], headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        if self._begun:
            return  # Too late for another answer: the server closes what is not complete.
        body = json.dumps(document).encode()
        fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
        await self.send({"type": "http.response.start", "status": status, "headers": fields})
        await self.send({"type": "http.response.body", "body": body})


def _story(number: str, error: Exception) -> Iterator[str]:
    yield f"mpsnap: unexpected error {number} in the server:"
    for lines in traceback.format_exception(error):
        # Whatever is in it cannot steer a terminal.
        yield from (one_line(line) for line in lines.rstrip("\n").split("\n"))
