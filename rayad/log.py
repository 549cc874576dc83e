"""What a command prints, copied to a URL that outlives the machine it ran on.

Nothing else is copied: no images, no environment, nothing of Ray. A message names files, and a file's name may
name a patient: the URL needs the same protection as the images.
"""

import io
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from rayad import storage
from rayad.errors import StorageError
from rayad.terminal import say

EVERY_S = 30.0
"""Seconds from one copy to the next."""


@runtime_checkable
class Copied(Protocol):
    """Where a command prints."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def fileno(self) -> int: ...


@contextmanager
def copied(url: str, command: str, every_s: float = EVERY_S) -> Iterator[None]:
    """Copy what is printed inside to URL/<UTC time>-<command>.log, again and again and at the end.

    An exception that leaves the block goes to the file too. That the file cannot be written is a line on standard
    error and stops nothing.

    Args:
        url: folder of the logs; "": nothing is copied.
        command: the name of what runs.
    """
    if not url:
        yield
        return
    log = _Log(storage.join(url, f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{command}.log"), io.StringIO(), sys.stderr)
    ended = threading.Event()
    copier = threading.Thread(target=log.keep_up, args=(ended, every_s), daemon=True)
    copier.start()
    try:
        with redirect_stdout(_Twice(sys.stdout, log.text)), redirect_stderr(_Twice(sys.stderr, log.text)):
            yield
    except Exception:
        log.text.write(traceback.format_exc())
        raise
    finally:
        ended.set()
        copier.join()


@dataclass(frozen=True)
class _Log:
    """A text that grows, and the file that it is copied to."""

    url: str
    text: io.StringIO
    complaints: Copied

    def keep_up(self, ended: threading.Event, every_s: float) -> None:
        """Copy the text whenever it has grown, until all of it is there."""
        copied, is_last = "", False
        while not is_last:
            is_last = ended.wait(every_s)
            text = self.text.getvalue()
            if text != copied and self._copy(text):
                copied = text

    def _copy(self, text: str) -> bool:
        """Whether the file could be written."""
        try:
            storage.write_bytes(self.url, text.encode())
        except StorageError as error:
            say(f"rayad: the log is not copied: {error}", self.complaints)
            return False
        return True


class _Twice(io.TextIOBase):
    """A stream whose text is kept besides; no terminal, so progress comes as lines."""

    def __init__(self, stream: Copied, copy: io.StringIO) -> None:
        self._stream, self._kept = stream, copy

    def write(self, text: str, /) -> int:
        self._kept.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True
