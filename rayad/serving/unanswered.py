"""What the API died over is asked of it again, by the proxy before it; where it cannot be, the answer is a problem.

Ray Serve's HTTP proxy says nothing for a replica that died, of which uvicorn makes a 500 in plain text. It takes
middlewares by the environment:
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=rayad.serving.unanswered:middlewares.
"""

import asyncio
import contextlib
import hmac
import logging
import os

from starlette.middleware import Middleware

from rayad.serving.exchange import LINGER_S, SAFE, Application, Message, Receive, Scope, Send, values
from rayad.serving.front import HEADER, SECRET
from rayad.serving.problems import Problem

LOG = logging.getLogger("rayad.serving")
ASIDE = frozenset(
    {
        b"expect",  # the proxy receives, by which the sender is told to go on, before the API is asked
        HEADER.encode(),
        b"serve-multiplexed-model-id",
        b"x-request-disconnect-disabled",
        b"x-request-id",
        b"x-request-timeout-seconds",
        b"x-session-id",
    }
)
"""Headers that the API does not get: all but the first two are orders to the proxy, not the client's to give."""
PAUSES_S = (0.2, 1.0, 3.0)
"""Before what had no answer is asked again."""
HEALTH = "/-/healthz"
"""The proxy's own page for orchestrators."""
PIECE = 1 << 18
"""Bytes of an answer that are handed over at a time, so that no more of it is copied than its reader takes."""
ANSWER_S = 300.0
"""How long an answer may take to be read; then the line is cut."""
MOST_KEPT = 256_000_000
"""Bytes of bodies under way that are kept to be sent again; a request over that is not."""


class Unanswered:
    """The middleware."""

    def __init__(self, app: Application, secret: str = "") -> None:
        """Stand before an application.

        Args:
            app: what is asked.
            secret: what every request has in `HEADER`; "": nothing is asked for.
        """
        self.app, self._secret, self._kept_by_all = app, secret.encode(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, up to four times."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = _without_trailers(scope) if self._secret else scope
        secrets = values(scope, HEADER.encode())
        scope = {
            **scope,
            "headers": [header for header in scope["headers"] if header[0].lower().replace(b"_", b"-") not in ASIDE],
        }
        if scope["path"] == HEALTH:
            await self.app(scope, receive, send)
            return
        body = _Body(self, receive, _can_be_repeated(scope))
        try:
            if self._secret and not (len(secrets) == 1 and hmac.compare_digest(secrets[0], self._secret)):
                await _say(send, Problem(421, "This port is for the proxy in front alone."), body)
                return
            if scope["path"].startswith("/-/"):  # the proxy's own pages tell what is served
                await _say(send, Problem(404), body)
                return
            answer = await self._ask(scope, body, send)
            if not answer.good and not body.gone:
                await _say(send, _problem(answer.status, _can_be_repeated(scope)), body)
        finally:
            body.drop()

    async def _ask(self, scope: Scope, body: "_Body", send: Send) -> "_Answer":
        """The last answer; it has passed if it is good."""
        pauses = iter(PAUSES_S)
        while True:
            answer = _Answer(send, body)
            try:
                await self.app(dict(scope), body.from_its_start(), answer.pass_on)
            except Exception:
                if answer.good:
                    raise  # half of it is out: the server cuts the line
                LOG.exception("the proxy failed")
            pause = next(pauses, None)
            if answer.good or answer.status not in (500, 503) or pause is None or not body.kept:
                return answer
            await asyncio.sleep(pause)

    def keep(self, size: int) -> bool:
        """Whether there is room for so many bytes more, which is then taken."""
        if self._kept_by_all + size > MOST_KEPT:
            return False
        self._kept_by_all += size
        return True

    def free(self, size: int) -> None:
        """Give back what was taken."""
        self._kept_by_all -= size


def _without_trailers(scope: Scope) -> Scope:
    """The request as HAProxy has it: what follows the header that it adds last came after a chunked body.

    uvicorn takes such trailers for headers, and its client for whom they name.
    """
    names = [name.lower() for name, _ in scope["headers"]]
    end = names.index(HEADER.encode()) + 1 if HEADER.encode() in names else 0
    scope = {**scope, "headers": scope["headers"][:end]}
    for client in values(scope, b"x-forwarded-for")[-1:]:
        scope["client"] = client.decode("latin-1").rpartition(",")[2].strip(), 0
    for scheme in values(scope, b"x-forwarded-proto")[-1:]:
        scope["scheme"] = scheme.decode("latin-1")
    return scope


def middlewares() -> list[Middleware]:
    """For Ray Serve."""
    return [Middleware(Unanswered, secret=os.environ.get(SECRET, ""))]


def _can_be_repeated(scope: Scope) -> bool:
    """Whether it does no more to ask twice than once."""
    return scope["method"] != "POST" or scope["path"] == "/v1/score"


class _Body:
    """A request's body, kept while it passes."""

    def __init__(self, keeper: Unanswered, receive: Receive, kept: bool) -> None:
        self.kept, self.gone, self.whole = kept, False, False
        self._keeper, self._receive, self._size = keeper, receive, 0
        self._passed: list[Message] = []

    def from_its_start(self) -> Receive:
        """What gives it, whether it passed before or not."""
        passed = iter(tuple(self._passed))

        async def receive() -> Message:
            return next(passed, None) or await self._next()

        return receive

    async def _next(self) -> Message:
        message = await self._receive()
        self.whole = not message.get("more_body", False)
        if message["type"] == "http.disconnect":  # nobody waits for an answer
            self.gone = True
            self.drop()
        elif self.kept:
            size = len(message.get("body", b""))
            if self._keeper.keep(size):
                self._size += size
                self._passed.append(message)
            else:
                self.drop()
        return message

    async def linger(self) -> None:
        """Take what is still sent, for a moment, so that its sender reads the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self.whole:
                    await self._next()

    def drop(self) -> None:
        """Keep no more."""
        self._keeper.free(self._size)
        self.kept, self._size, self._passed = False, 0, []


class _Answer:
    """An answer, which passes unless it is an error without its problem."""

    def __init__(self, send: Send, body: _Body) -> None:
        self.good, self.status = False, 500
        self._send, self._body = send, body

    async def pass_on(self, message: Message) -> None:
        """Take a message of ASGI."""
        if message["type"] == "http.response.start":
            message = {**message, "headers": _once(message.get("headers", ()))}
            self.status, kind = message["status"], dict(message["headers"]).get(b"content-type", b"")
            self.good = self.status < 400 or kind.startswith(b"application/problem+json")
            if self.good:
                self._body.drop()
        if self.good and message["type"] == "http.response.body":
            async with asyncio.timeout(ANSWER_S):
                await self._hand_over(message)
        elif self.good:
            await self._send(message)

    async def _hand_over(self, message: Message) -> None:
        """Send a body piece by piece, each when the one before has been taken."""
        body = memoryview(message.get("body", b""))
        while len(body) > PIECE:
            await self._send({**message, "body": bytes(body[:PIECE]), "more_body": True})
            body = body[PIECE:]
        await self._send({**message, "body": bytes(body)})


def _once(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers with one id of the request: the proxy adds its own to that of the API, whose log has its own."""
    names = [name.lower() for name, _ in headers]
    return [header for i, header in enumerate(headers) if names[i] != b"x-request-id" or names.index(names[i]) == i]


def _problem(status: int, repeated: bool) -> Problem:
    if status < 500:
        return Problem(status)
    headers = {"Retry-After": "30"}
    if repeated:
        return Problem(503, "The service cannot answer now.", headers=headers)
    return Problem(503, "The service ended before it answered; what was asked may have begun.", headers=headers)


async def _say(send: Send, problem: Problem, body: _Body) -> None:
    response = problem.response()
    own_headers = {**SAFE, b"cache-control": b"no-store", b"connection": b"close"}
    headers = [*response.raw_headers, *own_headers.items()]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    await body.linger()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
