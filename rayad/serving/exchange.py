"""One request and its answer on their way: how large and how slow a body may be, whose headers go out, the audit log.

Everything is counted while it passes, so that neither a wrong Content-Length nor a slow sender takes more than is
allowed; headers are those of the OWASP cheat sheet "HTTP Headers".
"""

import asyncio
import contextlib
import json
import logging
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rayad.serving import problems
from rayad.serving.problems import Problem
from rayad.serving.shares import Shares

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

AUDIT = logging.getLogger("rayad.audit")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WORDS = frozenset({"", "batches", "detectors", "health", "metrics", "openapi.json", "ready", "score", "v1", "web"})
"""What the audit log shows of a path; any other part of it may be a patient's name."""
GONE = 499
"""nginx's status for a client that went away before there was an answer."""
LINGER_S = 2.0
"""How long the rest of a refused body is taken, so that its sender reads why instead of finding the line cut."""
GRACE_S = 5.0
"""How long a body may take besides what its least rate gives it."""
LEAST_HELD = 1_000_000
"""Bytes that every request with a body is counted as, at least."""
SAFE = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
    b"content-security-policy": b"default-src 'self'; img-src 'self' blob: data:; worker-src 'self' blob:; "
    b"object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


@dataclass(frozen=True)
class RequestBounds:
    """Of a request's body."""

    most: int
    """Bytes."""
    seconds: float
    """How long all its parts together are waited for."""
    least_rate: float = 0.0
    """Bytes a second at which it comes, on average and after `GRACE_S`; 0: any."""


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, bounds: RequestBounds, bodies: Shares) -> None:
        """Take over a request.

        Args:
            scope: of ASGI, as the two that follow.
            receive: gives parts of the body.
            send: takes parts of the answer.
            bounds: of the body.
            bodies: bytes of which this one takes its own until it is answered.
        """
        self.scope, self.bounds = scope, bounds
        self._receive, self._send, self._bodies = receive, send, bodies
        self.id, self.status, self.bytes_in, self._held = uuid.uuid4().hex, 0, 0, 0
        self._began, self._waited = time.monotonic(), 0.0
        self._refusal: Problem | None = None
        self._answered = self._gone = False
        self._whole = not values(scope, b"transfer-encoding") and values(scope, b"content-length") in ([], [b"0"])

    async def run(self, app: Application, admit: Callable[[Scope], Awaitable[str]]) -> None:
        """Let an application answer, or answer in its place what is raised, and write down what happened.

        The application finds the request's id as state["request_id"], who asks as state["who"], where there are no
        tokens his address as state["caller"], and state["hold"], which it calls with the bytes that it keeps instead of
        the body.

        Args:
            app: what answers.
            admit: says who asks, or raises before anything is received.
        """
        self.scope.setdefault("state", {}).update(request_id=self.id, who="-", caller="-", hold=self._hold)
        try:
            await self._run(app, admit)
            if self._refusal is not None and not self._gone:
                await self._refuse(self._refusal)
        finally:
            self._bodies.give_back(self.scope["state"]["caller"], self._held)
            self._write_down()

    async def _run(self, app: Application, admit: Callable[[Scope], Awaitable[str]]) -> None:
        try:
            self.scope["state"]["who"] = await admit(self.scope)
            self._check_length()
            await app(self.scope, self._read, self._answer)
        except Exception as error:
            if self.status and not self._answered:
                raise  # half of an answer is out: the server cuts the line
            if not self.status:
                self._refusal = self._refusal or self._problem(error)

    def _problem(self, error: Exception) -> Problem:
        problem = problems.of(error)
        if problem.status == 500:
            problems.LOG.error("request %s failed", self.id, exc_info=error)
        return problem

    def _check_length(self) -> None:
        lengths = values(self.scope, b"content-length")
        if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
            raise Problem(400, "Content-Length is not a number.")
        if lengths and (len(lengths[0]) > 18 or int(lengths[0]) > self.bounds.most):
            raise self._too_large()
        if lengths and not self._bodies.has_room(self.scope["state"]["caller"], int(lengths[0])):
            raise _too_many()

    def _too_large(self) -> Problem:
        max_bytes = self.bounds.most
        return Problem(
            413, f"A request may have {f'{max_bytes / 1e6:g} MB' if max_bytes >= 1e6 else f'{max_bytes / 1e3:g} kB'}."
        )

    def _hold(self, size: int) -> None:
        """Count the request as so many bytes that are held until it is answered; Problem where that is too much."""
        additional = max(size, LEAST_HELD) - self._held
        if additional > 0 and not self._bodies.take(self.scope["state"]["caller"], additional):
            raise self._refused(_too_many())
        self._held += max(additional, 0)

    async def _read(self) -> Message:
        """What the application receives, while it is not too much and not too slow."""
        if self._refusal is not None:
            raise self._refusal
        if self._whole:
            return await self._receive()
        message = await self._next()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self.bytes_in > self.bounds.most:
                raise self._refused(self._too_large())
            self._hold(self.bytes_in)
        self._gone = message["type"] == "http.disconnect"
        return message

    async def _next(self) -> Message:
        """The next part of the body; only the time that is spent waiting for it counts."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._patience() - self._waited):
                return await self._receive()
        except TimeoutError as error:
            raise self._refused(self._too_slow()) from error
        finally:
            self._waited += time.monotonic() - began

    def _patience(self) -> float:
        """Seconds that are waited for a body of which so much has come (as mod_reqtimeout of Apache's server does)."""
        rate, max_seconds = self.bounds.least_rate, self.bounds.seconds
        return min(max_seconds, GRACE_S + self.bytes_in / rate) if rate else max_seconds

    def _too_slow(self) -> Problem:
        if self._patience() < self.bounds.seconds:
            return Problem(408, f"The request came at less than {self.bounds.least_rate / 1e3:g} kB/s.")
        return Problem(408, f"The request was not here within {self.bounds.seconds:g} s.")

    def _refused(self, problem: Problem) -> Problem:
        """From now on this is the answer, whatever the application makes of it: FastAPI makes 400 or 422."""
        if not self.status:
            self._refusal = problem
        return problem

    async def _answer(self, message: Message) -> None:
        """What the application sends; nothing goes out after a refusal, or to who hung up before the end."""
        if self._refusal is not None or self._gone:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._with_ours([*message.get("headers", ()), *self._close()])}
        elif message["type"] == "http.response.body":
            self._answered = not message.get("more_body", False)
            if self._answered and not self._whole:  # the application knew without the body
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _refuse(self, problem: Problem) -> None:
        response = problem.response()
        headers = self._with_ours([*response.raw_headers, *self._close()])
        self.status = response.status_code
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await self._send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
        await self._linger()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _close(self) -> list[tuple[bytes, bytes]]:
        """A header, where the line cannot be used again: a part of the body may still be on it."""
        return [] if self._whole else [(b"connection", b"close")]

    async def _linger(self) -> None:
        """Take what is still sent, for a moment; who waits for 100 Continue is not told to go on."""
        if values(self.scope, b"expect"):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self._whole:
                    message = await self._receive()
                    self._whole = message["type"] != "http.request" or not message.get("more_body", False)

    def _with_ours(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Headers of an answer, with ours instead of those of the same names."""
        path = self.scope["path"]
        own_headers = {**SAFE, b"x-request-id": self.id.encode()}
        if path.startswith("/v1") or path == "/metrics":
            own_headers[b"cache-control"] = b"no-store"
        elif not any(name.lower() == b"cache-control" for name, _ in headers):
            own_headers[b"cache-control"] = b"no-cache"
        if self.scope.get("scheme") == "https":
            own_headers[b"strict-transport-security"] = b"max-age=31536000"
        app_headers = [
            (name, value) for name, value in headers if name.lower() not in own_headers and _is_one_line(name, value)
        ]
        return [*app_headers, *own_headers.items()]

    def _write_down(self) -> None:
        """A line of the audit log: nothing in it is of the client's own words but the name of its token."""
        row = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": self.id,
            "who": self.scope["state"]["who"],
            "method": self.scope["method"] if self.scope["method"] in METHODS else "-",
            "path": _route(self.scope["path"]),
            "status": self.status or GONE,
            "bytes_in": self.bytes_in,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        AUDIT.info(json.dumps(row))


def values(scope: Scope, name: bytes) -> list[bytes]:
    """What a request's headers of this name, in lower case, say."""
    return [value.strip() for key, value in scope["headers"] if key.lower() == name]


def make_audible() -> None:
    """See that audit lines come out: on standard error, unless somebody has set up where they go."""
    AUDIT.setLevel(logging.INFO)
    if not AUDIT.hasHandlers():
        AUDIT.addHandler(logging.StreamHandler(sys.stderr))


def _too_many() -> Problem:
    return Problem(503, "The requests under way are all that the service holds.", headers={"Retry-After": "2"})


def _route(path: str) -> str:
    """A path with * for all that is no word of ours, as in /v1/batches/*."""
    return "/".join(part if part in WORDS else "*" for part in path.split("/"))


def _is_one_line(name: bytes, value: bytes) -> bool:
    return not any(byte in part for part in (name, value) for byte in b"\r\n\0")
