"""Who may ask, how much, and what is written down of it: the guard before the application.

An ASGI middleware without a framework, so that a request is refused before its body is read. Against DNS rebinding it
checks Host, against other sites' pages Origin and Sec-Fetch-Site; see the OWASP cheat sheets "REST Security" and
"Cross-Site Request Forgery Prevention".
"""

import asyncio
import math
import re
import time
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from rayad.errors import OptionError
from rayad.options import Amount, Count, Seconds, Weight
from rayad.serving.exchange import Application, Exchange, Receive, RequestBounds, Scope, Send, make_audible, values
from rayad.serving.issuer import Issuer, is_loopback
from rayad.serving.problems import Problem
from rayad.serving.shares import Shares
from rayad.serving.tokens import Caller, Tokens, from_environment

OPEN = ("/", "/batches", "/v1/health", "/v1/ready")
"""Paths that need no token, as all below /web/."""
PROBES = ("/v1/health", "/v1/ready")
"""Paths for orchestrators, which ask by address."""
WRONG_PER_MINUTE = 20
"""Wrong tokens of one address that are answered as such."""
LONGEST_TOKEN = 8192
LARGEST_PLACE = 64_000
"""Bytes of JSON that names an image."""
LARGEST_BATCH = 32_000_000
"""Bytes of JSON that begins a batch."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")
_ODD = re.compile(r"//|\\|[\x00-\x1f\x7f]|(?:^|/)\.{1,2}(?:/|$)")


@dataclass(frozen=True)
class Access:
    """Who may ask. RAYAD_TOKENS="name:token,name2:token2" in the environment has tokens too."""

    tokens: str = ""
    """File of tokens, a line for each: name, SHA-256 of the token, optional requests a minute. It is watched."""
    issuer: str = ""
    """URL of an OpenID Connect provider whose tokens are good too."""
    audience: str = ""
    """Audience that the provider's tokens must name: this service's name there."""
    per_minute: Amount = 0
    """Requests a minute of each token, at each replica; 0: any number."""
    hosts: tuple[str, ...] = ()
    """Names, or name:port, that the service is asked by, besides those of this machine itself."""

    def __post_init__(self) -> None:
        if self.per_minute < 0:
            raise OptionError(f"requests a minute are at least 1, or 0 for any number, not {self.per_minute}")
        if bool(self.issuer) != bool(self.audience):
            raise OptionError("issuer and audience of tokens go together")
        for host in self.hosts:
            if not _HOST.fullmatch(host.lower()):
                raise OptionError(f"a name that the service is asked by is host or host:port, not {host!r}")

    def asks(self) -> bool:
        """Whether a token is asked for; OptionError where the list of tokens or the issuer is none."""
        listed = from_environment()
        Tokens(self.tokens, listed)
        if self.issuer:
            Issuer(self.issuer, self.audience)
        return bool(self.tokens or self.issuer or listed)


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for."""

    max_body_mb: Count = 200
    """Size of a request, or of an image that a request names, in 10^6 bytes."""
    body_seconds: Seconds = 60
    """Seconds that the service waits for a whole request, or for an image that it names."""
    least_kb_s: Weight = 20
    """10^3 bytes a second at which a request must come, on average, after 5 s; 0: any."""
    held_mb: Count = 1000
    """10^6 bytes of requests and of images that they name, at once and in each Api replica; half for one caller."""
    request_seconds: Seconds = 300
    """Seconds that a request may take."""

    def __post_init__(self) -> None:
        for name in ("max_body_mb", "body_seconds", "request_seconds"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} must be above 0, not {getattr(self, name)}")
        if not self.least_kb_s >= 0:
            raise OptionError(f"least_kb_s must be at least 0, not {self.least_kb_s}")
        if self.held_mb < 2 * self.max_body_mb:
            raise OptionError(f"held_mb must be at least twice max_body_mb, which is {self.max_body_mb}")

    @property
    def max_body(self) -> int:
        """Bytes of a request's body."""
        return self.max_body_mb * 1_000_000


def check_binding(host: str, has_auth: bool, tls_here: bool, tls_in_front: bool) -> None:
    """Refuse to listen where others could ask without a token, or read what is sent.

    Args:
        host: name or address to listen at; one of this machine alone is always fine.
        has_auth: whether a token is asked for, as `Access.asks` says.
        tls_here: whether the service has a certificate.
        tls_in_front: whether the operator says that a proxy in front ends TLS.

    Raises:
        OptionError: what is missing.
    """
    if is_loopback(host) or (has_auth and (tls_here or tls_in_front)):
        return
    missing = [] if has_auth else ["tokens or an issuer of tokens"]
    missing += [] if tls_here or tls_in_front else ["a certificate, or the statement that TLS is in front"]
    raise OptionError(f"to listen at {host!r}, which others can reach, the service needs {' and '.join(missing)}")


class Guard:
    """The middleware: `app.add_middleware(Guard, access=..., limits=...)`."""

    def __init__(
        self, app: Application, access: Access = Access(), limits: Limits = Limits(), listed: tuple[str, ...] = ()
    ) -> None:
        """Read the list of tokens.

        Args:
            app: what is guarded.
            access: who may ask.
            limits: of a request.
            listed: lines of tokens, as `from_environment` makes them, of a process whose environment has them.

        Raises:
            OptionError: the list of tokens or the issuer is none.
        """
        listed = tuple(dict.fromkeys((*listed, *from_environment())))
        self.app, self.access, self.limits = app, access, limits
        self._tokens = Tokens(access.tokens, listed)
        self._issuer = Issuer(access.issuer, access.audience) if access.issuer else None
        self._asks = bool(access.tokens or access.issuer or listed)
        self._hosts = frozenset((*LOOPBACK, *(host.lower() for host in access.hosts)))
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._bodies = Shares(limits.held_mb * 1_000_000)
        make_audible()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application."""
        if scope["type"] == "websocket":  # there are none
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            exchange = Exchange(scope, receive, send, self._bounds(scope), self._bodies)
            await exchange.run(self._in_time, self._admit)
        else:
            await self.app(scope, receive, send)

    def _bounds(self, scope: Scope) -> RequestBounds:
        max_bytes, kind = self.limits.max_body, b"".join(values(scope, b"content-type")[:1]).partition(b";")[0]
        if scope["path"] == "/v1/batches":
            max_bytes = min(max_bytes, LARGEST_BATCH)
        elif kind.strip().lower() == b"application/json":
            max_bytes = min(max_bytes, LARGEST_PLACE)
        return RequestBounds(max_bytes, self.limits.body_seconds, self.limits.least_kb_s * 1000)

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, for as long as a request may take."""
        clock = asyncio.timeout(self.limits.request_seconds)
        try:
            async with clock:
                await self.app(scope, receive, send)
        except TimeoutError as error:
            if not clock.expired():
                raise
            detail = f"The request took longer than {self.limits.request_seconds:g} s."
            raise Problem(503, detail, headers={"Retry-After": "60"}) from error

    async def _admit(self, scope: Scope) -> str:
        """The name of who asks; Problem where the request is refused."""
        if _ODD.search(scope["path"]):
            raise Problem(404)
        if scope["path"] not in PROBES:
            self._check_host(scope)
        _check_origin(scope)
        if _is_open(scope):
            return "-"
        caller = await self._caller(scope)
        rate, requester = caller.per_minute or self.access.per_minute, caller.name if self._asks else _address(scope)
        if rate:
            self._count("requests", rate, requester)
        scope["state"]["caller"] = requester
        return caller.name

    def _check_host(self, scope: Scope) -> None:
        hosts = values(scope, b"host")
        name = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        match = _HOST.fullmatch(name)
        if match is None or not {name, match[1]} & self._hosts:
            raise Problem(421, "The service is not known by this name; its operator can add it to hosts.")

    async def _caller(self, scope: Scope) -> Caller:
        if not self._asks:
            return Caller("anonymous")
        credentials = values(scope, b"authorization")
        if not credentials:
            raise _unauthorized("A bearer token is needed.", "")
        match = (
            _BEARER.fullmatch(credentials[0])
            if len(credentials) == 1 and len(credentials[0]) <= LONGEST_TOKEN
            else None
        )
        token = match[1].decode() if match else ""
        caller = await self._issuer.find(token) if self._issuer is not None else None  # asks nobody of what is no JWT
        caller = caller or self._tokens.find(token)
        if caller is None:
            # a right token is never locked out by others' wrong ones, which come from one address behind a proxy
            self._count("wrong tokens", WRONG_PER_MINUTE, _address(scope))
            raise _unauthorized("The token is not known, not valid any more, or not for this service.", "invalid_token")
        return caller

    def _count(self, label: str, per_minute: int, requester: str) -> None:
        item = RateLimitItemPerMinute(per_minute)
        if not self._window.hit(item, label, requester):
            wait = self._window.get_window_stats(item, label, requester).reset_time - time.time()
            headers = {"Retry-After": str(max(1, math.ceil(wait)))}
            raise Problem(429, f"More than {per_minute} {label} in a minute.", headers=headers)


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path in OPEN or path.startswith("/web/"))


def _check_origin(scope: Scope) -> None:
    """Refuse what another site's page sends; programs have neither header."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return
    sites, origins, hosts = (values(scope, name) for name in (b"sec-fetch-site", b"origin", b"host"))
    if any(site not in (b"same-origin", b"none") for site in sites) or any(
        not _is_same(origin.decode("latin-1"), hosts) for origin in origins
    ):
        raise Problem(403, "The request comes from a page of another site.")


def _is_same(origin: str, hosts: list[bytes]) -> bool:
    """Whether a page's origin is the host that was asked; the scheme may differ, since TLS may end in front."""
    scheme, _, origin_host = origin.lower().partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)
    if port is None:
        return False
    return [origin_host.removesuffix(port)] == [host.decode("latin-1").lower().removesuffix(port) for host in hosts]


def _unauthorized(detail: str, error: str) -> Problem:
    """401 as RFC 6750, section 3, has it."""
    challenge = 'Bearer realm="rayad"' + (f', error="{error}"' if error else "")
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})


def _address(scope: Scope) -> str:
    """The client's address, or its network of an IPv6 one, where each client has a whole network."""
    host = (scope.get("client") or ("-", 0))[0]
    try:
        address = ip_address(host)
    except ValueError:
        return "-"
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), 64), strict=False)) if isinstance(address, IPv6Address) else str(address)
