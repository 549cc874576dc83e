"""What a text may show on a terminal: names come from strangers, and a terminal obeys what it is sent."""

import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Protocol, runtime_checkable

from rayad.errors import StorageError

UNPRINTABLE = re.compile(
    "["
    "\\x00-\\x1f\\x7f-\\x9f"  # control characters: C0, delete, C1
    "\\u2028\\u2029"  # separators of lines and paragraphs
    "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"  # the direction of writing
    "\\u200b-\\u200d\\u2060-\\u2065\\ufeff\\U000e0000-\\U000e0fff"  # nothing to be seen
    "\\ud800-\\udfff"  # half of a pair: bytes of a file's name that are no UTF-8
    "]+"
)
"""Characters that move, colour or hide what stands around them, or that no encoding has."""


@runtime_checkable
class Stream(Protocol):
    """Where lines are printed."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


def printable(text: str) -> str:
    r"""The text with an escape, such as \x1b or \n, in the place of every character that is none to be seen."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def shortened(value: object, longest: int = 60) -> str:
    """A value as Python writes it, printable, its end cut off where it is long."""
    text = printable(repr(value))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def say(text: str, stream: Stream | None = None) -> None:
    """Print a line as `printable` has it, at once.

    Args:
        stream: where to; None: standard output.

    Raises:
        StorageError: it is a file that cannot be written to.
        BrokenPipeError: it is a pipe that nobody reads.
    """
    with writable():
        print(printable(text), file=stream, flush=True)


@cache
def warn_once(text: str) -> None:
    """Print a line on standard error, the first time that this process has it to say."""
    say(f"rayad: {text}", sys.stderr)


@contextmanager
def writable() -> Iterator[None]:
    """Printing that fails, but to a pipe, is a StorageError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"cannot print: {error.strerror}") from error


def print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As sys.excepthook: an error that nobody expected, as `printable` has its lines."""
    for line in "".join(traceback.format_exception(kind, error, trace)).splitlines():
        say(line, sys.stderr)


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal; elsewhere a line every tenth of the way. ``step(status, by)`` moves it, with a status."""
    from tqdm import tqdm  # what shows no progress needs none

    bar = tqdm(total=total, desc=printable(label), disable=not sys.stderr.isatty(), leave=False)
    done = 0

    def step(status: str = "", by: int = 1) -> None:
        nonlocal done
        done += by
        bar.set_postfix_str(printable(status), refresh=False)
        bar.update(by)
        tenth = max(1, total // 10)
        if bar.disable and (done == total or done // tenth > (done - by) // tenth):
            say(f"{label}: {done} of {total} {status}".rstrip(), sys.stderr)

    try:
        yield step
    finally:
        bar.close()
