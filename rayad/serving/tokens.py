"""Bearer tokens (RFC 6750) that the operator gives out and takes back.

A token is known by its SHA-256 alone. The list is a file, a line for each: `name sha256 [requests-per-minute]`; what
follows a # does not count. It is read again whenever it changes, so a line that is deleted is a token that is revoked.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from rayad.errors import OptionError
from rayad.serving.problems import Problem

LOG = logging.getLogger("rayad.serving")
VARIABLE = "RAYAD_TOKENS"
SHORTEST = 16
"""Characters of a token in the environment; those that rayad makes have 43."""
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_PLAIN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    name: str
    """For the audit log and the count of requests."""
    per_minute: int = 0
    """Requests a minute; 0: as many as the server lets everybody."""


class Tokens:
    """The tokens that are good now."""

    def __init__(self, file: str = "", listed: Sequence[str] = ()) -> None:
        """Read the list.

        Args:
            file: the list; empty: there is none.
            listed: more lines, as `from_environment` makes them.

        Raises:
            OptionError: the file cannot be read, others may read or change it, or a line is none of the list's.
        """
        self.file = file
        self._listed = dict(_parsed(listed, VARIABLE))
        self._seen: tuple[int, ...] = ()
        self._filed: dict[bytes, Caller] = {}
        if file:
            self._read()

    def __len__(self) -> int:
        return len(self._listed) + len(self._filed)

    def find(self, plain: str) -> Caller | None:
        """Whose token this is; how long it takes tells nothing of tokens that are nearly right.

        Raises:
            Problem: 503, the list was changed to something that cannot be read; then no token of it is good.
        """
        digest = hashlib.sha256(plain.encode()).digest()
        if caller := _found(digest, self._listed):
            return caller
        if self.file:
            self._refresh()
        return _found(digest, self._filed)

    def _refresh(self) -> None:
        try:
            if _version(os.stat(self.file)) != self._seen:
                self._read()
        except (OSError, OptionError) as error:
            self._seen = ()
            LOG.error("the list of tokens cannot be read: %s", error)
            raise Problem(
                503, detail="The service cannot read its list of tokens.", headers={"Retry-After": "60"}
            ) from error

    def _read(self) -> None:
        self._seen, self._filed = (), {}
        try:
            with open(self.file, "rb") as file:
                status = _trusted(file)
                text = file.read().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"cannot read the tokens in {self.file}: {error}") from error
        self._filed = dict(_parsed(text.splitlines(), self.file))
        self._seen = _version(status)


def _found(digest: bytes, callers: Mapping[bytes, Caller]) -> Caller | None:
    match = None
    for known_digest, caller in callers.items():
        if hmac.compare_digest(known_digest, digest):
            match = caller
    return match


def from_environment() -> tuple[str, ...]:
    """Lines of a list, without a secret in them, of the tokens in RAYAD_TOKENS="name:token,name2:token2".

    Raises:
        OptionError: the variable is not of this form, or a token is short enough to be guessed.
    """
    return tuple(_line(*_pair(entry)) for entry in os.environ.get(VARIABLE, "").split(",") if entry.strip())


def new_token(name: str, file: str) -> str:
    """Make a token of 256 random bits and append its hash to a list, which is made if need be, for its owner alone.

    Args:
        name: of who gets it: letters, digits and _.@-; a name can have several tokens, an old and a new one.

    Returns:
        The token. It is kept nowhere else.

    Raises:
        OptionError: the name is not one, the list cannot be written, or others may read or change it.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(f"the name of a token is up to 64 letters, digits and _.@-, not {name!r}")
    plain = secrets.token_urlsafe(32)
    try:
        _append(file, _line(name, plain))
    except OSError as error:
        raise OptionError(f"cannot write the tokens in {file}: {error}") from error
    return plain


def _append(file: str, line: str) -> None:
    """Add a line with one write, which others see whole or not at all."""
    with open(file, "a+b", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        end = _trusted(out).st_size
        out.seek(max(0, end - 1))
        ends_with_newline = end == 0 or out.read(1) == b"\n"
        out.write(f"{'' if ends_with_newline else chr(10)}{line}\n".encode())
        os.fsync(out.fileno())


def _trusted(file: BinaryIO) -> os.stat_result:
    """The status of an open list that only its owner, or root, can have written; a group may read it."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise OptionError(f"the list of tokens {file.name} is not a file")
    if status.st_mode & 0o027 or status.st_uid not in (0, os.geteuid()):
        raise OptionError(f"others may read or change the list of tokens {file.name}: chmod 600 it, and own it")
    return status


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _parsed(lines: Iterable[str], source: str) -> Iterator[tuple[bytes, Caller]]:
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, digest, rate = (*words, "0", "")[:3] if len(words) in (2, 3) else ("", "", "")
        if not (_NAME.fullmatch(name) and _DIGEST.fullmatch(digest) and rate.isdecimal()):
            raise OptionError(f"{source}: line {number} is not `name sha256-of-token [requests-per-minute]`")
        yield bytes.fromhex(digest), Caller(name, int(rate))


def _pair(entry: str) -> tuple[str, str]:
    name, _, plain = entry.strip().partition(":")
    if not _NAME.fullmatch(name) or not _PLAIN.fullmatch(plain):
        raise OptionError(f"{VARIABLE} is name:token,name2:token2; a name has letters, digits and _.@-")
    if len(plain) < SHORTEST:
        raise OptionError(f"the token of {name!r} in {VARIABLE} must have at least {SHORTEST} characters")
    return name, plain


def _line(name: str, plain: str) -> str:
    return f"{name} {hashlib.sha256(plain.encode()).hexdigest()}"
