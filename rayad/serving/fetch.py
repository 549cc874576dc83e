"""What a URL in a request may be, and its content: no door into the network or the disks that the service can reach.

Nothing is allowed but what lies below prefixes that the operator names. A URL that two readers could read in two ways
is refused instead of normalized, since the one who checks it is not the one who opens it. OWASP's cheat sheet
"Server-Side Request Forgery Prevention" has the cases; an address is resolved once, checked, and connected to.
"""

import asyncio
import ipaddress
import os
import re
import socket
import ssl
import stat
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from anyio import to_thread
from yarl import URL

from rayad import local, storage
from rayad.errors import OptionError
from rayad.serving.access import Limits
from rayad.serving.problems import Problem

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host name, for a port."""
PORTS = {"http": 80, "https": 443}
STORES = ("s3", "memory")
LONGEST = 2048
"""Characters of a URL."""
CHUNK = 1 << 20
NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # where Azure's machines find their secrets, by its number a public address
        "192.0.0.0/24",  # RFC 6890; Oracle's machines find theirs there
        "64:ff9b::/96",  # RFC 6052: the last 32 bits are an IPv4 address
        "fec0::/10",  # RFC 3879
    )
)
"""Networks that `ipaddress` does not refuse, or not in every Python."""
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?", re.IGNORECASE)  # RFC 3986, appendix B
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::([0-9]{1,5}))?")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WEB_PATH = re.compile(r"[!$&'()*+,;=:@A-Za-z0-9._~%/-]*")  # RFC 3986, pchar and /
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Place:
    """A URL in the one way that it can be read."""

    scheme: str
    authority: str
    """Host and port, or bucket; empty for files of this machine."""
    path: str
    """As it was given, from its first /; nothing in it leads anywhere else."""
    query: str = ""

    @property
    def url(self) -> str:
        """The whole of it."""
        return f"{self.scheme}://{self.authority}{self.path}" + (f"?{self.query}" if self.query else "")

    @property
    def host(self) -> str:
        """The authority without its port."""
        return re.sub(r":[0-9]+$", "", self.authority)

    def is_below(self, prefix: "Place") -> bool:
        """Whether it is the prefix, or lies in it as in a folder."""
        top, path = prefix.meant.rstrip("/"), self.meant
        is_same = (self.scheme, self.authority) == (prefix.scheme, prefix.authority)
        return is_same and (path == top or path.startswith(top + "/"))

    @property
    def meant(self) -> str:
        """The path as who opens it reads it: % is a letter in the names of files and objects."""
        return unquote(self.path) if self.scheme in PORTS else self.path


def parsed(url: str) -> Place:
    """A URL taken apart.

    Raises:
        Problem: 422, it can be read in more than one way, or is none of file://, http://, https://, s3://.
    """
    match = _URL.fullmatch(url) if len(url) <= LONGEST else None
    if match is None or _CONTROL.search(url):
        raise Problem(422, "A URL is scheme://place/path, without a fragment, in at most 2048 characters.")
    scheme, authority, path, query = match[1].lower(), match[2], match[3] or "/", match[4] or ""
    _check_path(path)
    if scheme in PORTS:
        return _of_web(scheme, authority, path, query)
    if query or "?" in url or "::" in url:  # fsspec chains URLs by ::
        raise Problem(422, "A URL of a file or an object has neither ? nor ::.")
    if scheme == "file" and not authority:
        return Place(scheme, "", path)
    if scheme in STORES and _BUCKET.fullmatch(authority):
        return Place(scheme, authority, path)
    raise Problem(422, "A URL begins with file:///, http://, https:// or s3://, and a host or bucket is a plain name.")


@dataclass(frozen=True)
class AllowList:
    """What the operator lets the service open. Nothing is in it by default."""

    prefixes: tuple[str, ...] = ()
    """Such as s3://bucket/folder/, https://images.example.org/mammo/, file:///data/in/."""

    def __post_init__(self) -> None:
        for prefix in self.prefixes:
            _as_prefix(prefix)

    def place(self, url: str) -> Place:
        """A URL that is allowed, taken apart. Links of local folders are followed and must not lead out.

        Raises:
            Problem: 403, it is not allowed; 422, it is none.
        """
        place = parsed(url)
        prefixes = [prefix for prefix in map(_as_prefix, self.prefixes) if place.is_below(prefix)]
        if not prefixes:
            raise Problem(403, "The service is not allowed to open this URL; its operator can allow a prefix of it.")
        return place if place.scheme != "file" else _without_links(place, prefixes)

    def check(self, url: str) -> str:
        """A URL that is allowed, as it can be opened; Problem as `place`."""
        return self.place(url).url


async def fetch(url: str, allow: AllowList, limits: Limits, lookup: Lookup | None = None) -> bytes:
    """What is at a URL.

    Args:
        url: file, object or page; a redirect is not followed.
        allow: what may be opened.
        limits: its size and how long it may take are those of a request's body.
        lookup: gives the addresses of a name; None: the system's.

    Raises:
        Problem: 403, it is not allowed, or its host is no public one; 404, 413, 422, 502 or 504 for what it is.
        StorageError: storage cannot be read.
    """
    try:
        async with asyncio.timeout(limits.body_seconds):
            place = await asyncio.to_thread(allow.place, url)
            if place.scheme in PORTS:
                return await _web(place, limits.max_body, lookup or _system)
            read = _file if place.scheme == "file" else _object
            # storage that is away is waited for longer than this: such a thread must hold up nobody else
            return await to_thread.run_sync(read, place, limits.max_body, abandon_on_cancel=True)
    except TimeoutError as error:
        raise Problem(504, f"The URL's content was not here within {limits.body_seconds:g} s.") from error


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's: not private, local, reserved, nor one that hides another."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped or ip.sixtofour or ip.teredo):
        return False
    is_special = ip.is_multicast or ip.is_reserved or any(ip in network for network in NOT_PUBLIC)
    return ip.is_global and not is_special


def _check_path(path: str) -> None:
    """Refuse a path that leads elsewhere once it is decoded, as often as anybody might."""
    segments, previous = path.count("/"), ""
    while path != previous:
        if any(_is_odd(text, segments) for text in (path, unicodedata.normalize("NFKC", path))):
            raise Problem(422, r"The path of a URL has no \, no //, no . or .. and no / that is written %2F.")
        previous, path = path, unquote(path, errors="surrogateescape")


def _is_odd(path: str, segments: int) -> bool:
    parts = (part.partition(";")[0].strip() for part in path.split("/"))  # Tomcat reads ..;x as ..
    has_odd_separator = "\\" in path or "//" in path or path.count("/") != segments
    return has_odd_separator or _CONTROL.search(path) is not None or any(part in (".", "..") for part in parts)


def _of_web(scheme: str, authority: str, path: str, query: str) -> Place:
    match = _AUTHORITY.fullmatch(authority.lower())
    if match is None or not _WEB_PATH.fullmatch(path) or not query.isascii() or re.search(r"[\s\\]", query):
        raise Problem(422, "A web URL is https://host:port/path, in ASCII (xn--, %20) and without a user or password.")
    host, port = _host(match[1]), int(match[2] or PORTS[scheme])
    if not 0 < port < 65536:
        raise Problem(422, "A port is 1 to 65535.")
    return Place(scheme, host if port == PORTS[scheme] else f"{host}:{port}", path, query)


def _host(name: str) -> str:
    """A name, or an address in its usual form; what ends in a number is an address (WHATWG URL, 3.5)."""
    if not name.startswith("[") and not re.search(r"(^|\.)(0x[0-9a-f]*|[0-9]+)$", name):
        return name
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError as error:
        raise Problem(422, "An address in a URL is 192.0.2.1 or [2001:db8::1].") from error
    return f"[{address}]" if address.version == 6 else str(address)


def _as_prefix(prefix: str) -> Place:
    try:
        place = parsed(prefix)
    except Problem as problem:
        raise OptionError(f"{prefix!r} is no prefix of URLs to allow: {problem}") from problem
    if place.query:
        raise OptionError(f"a prefix of URLs to allow has no query, as {prefix!r} has")
    return place


def _without_links(place: Place, prefixes: Sequence[Place]) -> Place:
    try:
        return Place("file", "", local.resolve(place.path, [prefix.path for prefix in prefixes]))
    except local.OutsideError as error:
        raise Problem(403, "The file is a link to a place that the service is not allowed to open.") from error
    except OSError as error:  # it was changed meanwhile
        raise Problem(403, f"The file at the URL cannot be read: {error.strerror}.") from error


def _file(place: Place, largest: int) -> bytes:
    """A file whose path has no link in it, and gets none meanwhile."""
    try:
        descriptor = local.open_file(place.path)
    except FileNotFoundError as error:
        raise Problem(404, "There is no file at the URL.") from error
    except OSError as error:
        raise Problem(403, f"The file at the URL cannot be read: {error.strerror}.") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Problem(422, "The URL is not that of a file.")
        return _at_most(lambda size: os.read(descriptor, size), largest)
    finally:
        os.close(descriptor)


def _object(place: Place, largest: int) -> bytes:
    with storage.reading(place.url) as file:
        return _at_most(file.read, largest)


def _at_most(read: Callable[[int], bytes], largest: int) -> bytes:
    parts, remaining = list[bytes](), largest + 1
    while remaining and (part := read(min(CHUNK, remaining))):
        parts.append(part)
        remaining -= len(part)
    if not remaining:
        raise _too_large(largest)
    return b"".join(parts)


def _too_large(largest: int) -> Problem:
    return Problem(413, f"The URL's content is more than {largest / 1e6:g} MB.")


async def _web(place: Place, largest: int, lookup: Lookup) -> bytes:
    """The body of a page, as it is sent: nothing is decompressed, redirected or remembered."""
    secure = ssl.create_default_context() if place.scheme == "https" else True
    resolver = _Checked(lookup, place.host == "localhost")
    connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, ssl=secure, force_close=True)
    try:
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session:
            headers = {"Accept-Encoding": "identity", "User-Agent": "rayad"}
            async with session.get(URL(place.url, encoded=True), allow_redirects=False, headers=headers) as response:
                _check_answer(response)
                return await _body(response, largest)
    except (aiohttp.ClientError, OSError) as error:
        problem = _refusal(error)
        raise problem or Problem(502, "The URL's host cannot be reached, or its answer is none.") from error


def _check_answer(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        status = {401: 403, 403: 403, 404: 404, 410: 404}.get(response.status, 502)
        raise Problem(status, f"The URL's host answers {response.status}; redirects are not followed.")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(502, "The URL's host sends a compressed answer, which was not asked for.")


async def _body(response: aiohttp.ClientResponse, largest: int) -> bytes:
    if (response.content_length or 0) > largest:
        raise _too_large(largest)
    parts, size = list[bytes](), 0
    async for part in response.content.iter_chunked(CHUNK):
        parts.append(part)
        size += len(part)
        if size > largest:
            raise _too_large(largest)
    return b"".join(parts)


class _NotPublicError(OSError):
    """A name has an address that is not for it to have."""


class _Checked(AbstractResolver):
    """Addresses that may be connected to. aiohttp connects to what this gives, and asks once."""

    def __init__(self, lookup: Lookup, local: bool) -> None:
        """`local`: the operator allowed this machine itself."""
        self._lookup, self._local = lookup, local

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of a name, of which none may be another than a public one."""
        addresses = await self._lookup(host, port)
        if not addresses:
            raise OSError(f"no address of {host}")
        if not self._local and not all(map(is_public, addresses)):
            raise _NotPublicError
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """There is nothing to close."""


async def _system(host: str, port: int) -> list[str]:
    addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in addresses]


def _refusal(error: BaseException | None) -> Problem | None:
    """Whether a connection failed because of where it would have led."""
    while error is not None:
        if isinstance(error, _NotPublicError):
            return Problem(403, "The URL's host is not a public one.")
        error = error.__cause__
    return None
