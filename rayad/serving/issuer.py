"""Tokens of an OpenID Connect provider: JWTs (RFC 7519) that are checked with its published keys.

The keys are found by OpenID Connect Discovery 1.0, section 4. RFC 8725 says what is checked and why: algorithms with
public keys alone, the algorithm that the key is for, issuer, audience and times.
"""

import asyncio
import hashlib
import logging
import re
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt

from rayad import bounded
from rayad.errors import FormatError, OptionError
from rayad.serving.problems import Problem
from rayad.serving.tokens import Caller

LOG = logging.getLogger("rayad.serving")
ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)  # fmt: skip
LEEWAY_S = 30
"""How far the provider's clock may be from ours."""
FRESH_S, STALE_S = 300, 3600
"""After how long keys are asked for again, and how long they serve while the provider does not answer."""
LARGEST = 1_000_000
"""Bytes of a document of the provider."""
PATIENCE = aiohttp.ClientTimeout(total=10)
_WRONG = (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What PyJWT makes of tokens that are none."""


@dataclass
class Issuer:
    """A provider, and the keys that it last published."""

    url: str
    """As the tokens have it in `iss`; https, except on this machine."""
    audience: str
    """As the tokens have it in `aud`: this service's name at the provider."""
    pause_s: float = 10
    """Shortest time between two requests for keys, so that tokens with made-up keys do not become requests."""
    _keys: list[jwt.PyJWK] = field(default_factory=list, init=False)
    _loaded: float = field(default=float("-inf"), init=False)
    _asked: float = field(default=float("-inf"), init=False)
    _one: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def __post_init__(self) -> None:
        if not self.audience:
            raise OptionError("an issuer of tokens goes with the audience that its tokens must be for")
        if not _private_enough(self.url):
            raise OptionError(f"the issuer of tokens must be an https:// URL, not {self.url!r}")

    async def find(self, token: str) -> Caller | None:
        """Whom the provider says the bearer is; None for what is not a good token of it.

        Raises:
            Problem: 503, the provider's keys cannot be had.
        """
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(header.get("kid")) if header.get("alg") in ALGORITHMS else None
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self.audience,
                issuer=self.url,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except _WRONG:
            return None
        return Caller(f"oidc:{_plain(claims['sub'])}") if claims["sub"] else None

    async def _key(self, kid: object) -> jwt.PyJWK | None:
        """The key of this name; one that is not known yet may have been published since."""
        key, age = self._known(kid), time.monotonic() - self._loaded
        if age > FRESH_S and not (key and age < STALE_S and self._one.locked()):  # one request waits, not all
            await self._load()
            key = self._known(kid)
        if key is None:
            await self._load()
            key = self._known(kid)
        return key

    def _known(self, kid: object) -> jwt.PyJWK | None:
        keys = [key for key in self._keys if kid is None or key.key_id == kid]
        return keys[0] if len(keys) == 1 else None

    async def _load(self) -> None:
        async with self._one:
            if time.monotonic() - self._asked >= self.pause_s:
                try:
                    self._keys = await _published(self.url)
                    self._loaded = time.monotonic()
                except (aiohttp.ClientError, TimeoutError, FormatError, *_WRONG) as error:
                    LOG.warning("no keys from the issuer of tokens %s: %s", self.url, error)
                finally:
                    self._asked = time.monotonic()
        if time.monotonic() - self._loaded > STALE_S:
            headers = {"Retry-After": str(max(1, round(self.pause_s)))}
            raise Problem(503, "The issuer of tokens does not answer.", headers=headers)


def _plain(subject: str) -> str:
    """A subject as up to 64 letters, digits and _.@-; any other one is made so and ends with ~ and some of its SHA-256.

    No subject that is plain by itself has a ~, so nobody can be called as another one is.
    """
    plain = re.sub(r"[^\w.@-]", "_", subject, flags=re.ASCII)
    if plain == subject and len(plain) <= 64:
        return plain
    return f"{plain[:51]}~{hashlib.sha256(subject.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


async def _published(url: str) -> list[jwt.PyJWK]:
    """The keys for signatures that a provider publishes now."""
    async with aiohttp.ClientSession(timeout=PATIENCE, cookie_jar=aiohttp.DummyCookieJar()) as session:
        configuration = await _document(session, url.rstrip("/") + "/.well-known/openid-configuration")
        if configuration["issuer"] != url:
            raise ValueError(f"its configuration is that of {configuration['issuer']!r}")
        if not _private_enough(configuration["jwks_uri"]):
            raise ValueError("its keys are not at an https:// URL")
        keys = jwt.PyJWKSet.from_dict(await _document(session, configuration["jwks_uri"]))
    return [key for key in keys.keys if key.public_key_use in (None, "sig")]


async def _document(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise ValueError(f"{url} answers {response.status}")
        parts, size = list[bytes](), 0
        async for part in response.content.iter_chunked(65536):
            parts, size = [*parts, part], size + len(part)
            if size > LARGEST:
                raise ValueError(f"{url} answers with more than {LARGEST} bytes")
    return bounded.parse_json(b"".join(parts), url)


def _private_enough(url: str) -> bool:
    """Whether nobody between here and there can change what is answered."""
    parts = urlsplit(url)
    if not parts.hostname or parts.username or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))


def is_loopback(host: str) -> bool:
    """Whether a host, given by name or address, is this machine and nothing that others reach."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
