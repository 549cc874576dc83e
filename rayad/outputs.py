"""Where a command writes: no input is written over, nothing that rayad did not write is replaced, and one at a time.

A folder that rayad writes to has a hidden file `.rayad.json` that says what it holds and, while a command writes there,
which one. On a local disk that command holds a lock of the file, which ends with it, however it ends. An object store
has no locks: there the command counts in the file, and one that has stopped counting is gone.
"""

import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

from rayad import local, storage
from rayad.errors import FormatError, OptionError, RayadError, StorageError

MARK = ".rayad.json"
IGNORE = ".rayignore"
"""What Ray does not upload with a job's working folder: nothing of a local folder that rayad writes to."""
BEAT_S = 5.0
"""How often a command counts, in an object store."""
BEATS = 4
"""A command that has not counted for so many times is gone."""
SETTLE_S = 1.0
"""After how long a command looks whether another has written its name in the place of its own."""
SIGNS = {
    "a corpus": ("manifest.json", "plan.json"),
    "a detector": ("detector.json",),
    "a sweep": ("sweep.json",),
    "a report": ("results.json", "streamed.json"),
    "an inspection": ("inspection.json",),
    "a run": ("corpus/plan.json", "corpus/manifest.json", "report/results.json"),
    "heatmaps": ("heatmaps.jsonl",),
    "a batch": ("batch.json",),
}
"""What a folder can hold -> files by which folders are known that have no `.rayad.json`, as before it was written."""


@contextmanager
def claimed(url: str, kind: str, inputs: Sequence[str] = ()) -> Iterator[None]:
    """A folder that is this command's to write to until the block ends.

    Args:
        kind: what it will hold, of `SIGNS`.
        inputs: files and folders that the command reads.

    Raises:
        OptionError: the folder lies in, above or below an input, holds something else, or another command writes there.
        StorageError: it cannot be written.
    """
    require_apart(url, inputs)
    require_own(url, kind)
    with _locked(url, kind) if storage.is_local(url) else _leased(url, kind):
        yield


def require_apart(url: str, inputs: Sequence[str]) -> None:
    """OptionError where a folder to write to is an input, or lies in, above or below one."""
    out = _resolved(url)
    for source in filter(None, inputs):
        source_place = _resolved(source)
        if f"{out}/".startswith(f"{source_place}/") or f"{source_place}/".startswith(f"{out}/"):
            raise OptionError(f"{url}: the output would lie in, above or below the input {source}; name another place")


def require_own(url: str, kind: str) -> None:
    """OptionError where a folder holds what rayad did not write, or wrote as something else."""
    holds = _holds(url)
    if holds == kind:
        return
    if holds:
        raise OptionError(f"{url}: holds {holds}; name a place of its own for {kind}")
    if file := storage.any_file(url):
        raise OptionError(
            f"{url}: holds files that are not {kind} of rayad, such as {file}; name an empty place, or a new one"
        )


def _holds(url: str) -> str:
    """What rayad wrote to a folder; empty: nothing that is known."""
    holds = _read(storage.join(url, MARK)).get("holds")
    if isinstance(holds, str):
        return holds
    signs = ((kind, name) for kind, names in SIGNS.items() for name in names)
    return next((kind for kind, name in signs if storage.exists(storage.join(url, name))), "")


def _read(mark_url: str) -> dict[str, Any]:
    """What a mark says; nothing where there is none or it was cut short; StorageError of a link that leads away."""
    try:
        return storage.read_json(mark_url, roots=(mark_url.rpartition("/")[0],)) if storage.exists(mark_url) else {}
    except FormatError:
        return {}


def _resolved(url: str) -> str:
    return os.path.realpath(storage.local_path(url)) if storage.is_local(url) else url.rstrip("/")


@contextmanager
def _locked(url: str, kind: str) -> Iterator[None]:
    """Hold the lock of a local folder's mark."""
    folder = storage.local_path(url)
    is_new = not os.path.isdir(folder)
    storage.make_folder(url)
    mark_path = os.path.join(folder, MARK)
    with ExitStack() as stack:
        file = stack.enter_context(_opened(mark_path))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(url, _read(mark_path).get("writer", {})) from None
        except OSError:
            pass  # the file system has no locks
        if not os.path.exists(mark_path):  # whoever had it came to nothing and removed it meanwhile
            raise _busy(url, {})
        _put(file, {"holds": kind, "writer": _this()})
        if not os.path.lexists(ignore := os.path.join(folder, IGNORE)):
            storage.write_bytes(ignore, b"*\n")
        try:
            yield
        finally:
            if {*os.listdir(folder)} <= {MARK, IGNORE}:  # it came to nothing
                for name in (MARK, IGNORE):
                    with suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, name))
                if is_new:
                    os.rmdir(folder)
            else:
                with suppress(OSError):  # the disk may be full
                    _put(file, {"holds": kind})


def _opened(mark_path: str) -> TextIO:
    """A mark, which is made if there is none; StorageError where it cannot be written, or is a link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    try:
        return os.fdopen(os.open(mark_path, flags, 0o666 & ~local.umask()), "r+")
    except OSError as error:
        raise StorageError(f"cannot write {mark_path}: {error.strerror}") from error


def _put(file: TextIO, content: dict[str, Any]) -> None:
    """Replace the content of an open mark."""
    file.seek(0)
    file.write(json.dumps(content) + "\n")
    file.truncate()
    file.flush()


@contextmanager
def _leased(url: str, kind: str) -> Iterator[None]:
    """Count in the mark of a folder of an object store."""
    mark_url = storage.join(url, MARK)
    this_writer = _this() | {"id": uuid.uuid4().hex}
    writer = _read(mark_url).get("writer")
    if writer and not _is_gone(mark_url, writer):
        raise _busy(url, writer)
    storage.write_json(mark_url, {"holds": kind, "writer": this_writer | {"beat": 0}})
    if not url.startswith("memory://"):  # which no other process sees
        time.sleep(SETTLE_S)
    winner = _read(mark_url).get("writer", {})
    if winner.get("id") != this_writer["id"]:
        raise _busy(url, winner)
    stop = threading.Event()
    counting = threading.Thread(target=_count, args=(mark_url, kind, this_writer, stop), daemon=True)
    counting.start()
    try:
        yield
    finally:
        stop.set()
        counting.join()
        with suppress(RayadError):  # what failed may be the storage
            if storage.any_file(url):
                storage.write_json(mark_url, {"holds": kind})
            else:
                storage.remove(mark_url)


def _count(mark_url: str, kind: str, this_writer: dict[str, Any], stop: threading.Event) -> None:
    beat = 0
    while not stop.wait(BEAT_S):
        beat += 1
        with suppress(StorageError):
            storage.write_json(mark_url, {"holds": kind, "writer": this_writer | {"beat": beat}})


def _is_gone(mark_url: str, writer: dict[str, Any]) -> bool:
    """Whether the command that wrote to a folder writes no more; it is watched, unless it was of this machine."""
    this_writer = _this()
    if all(writer.get(name) == this_writer[name] for name in ("host", "boot")):
        return _started(writer.get("process", 0)) != writer.get("started")
    for _ in range(BEATS):
        time.sleep(BEAT_S)
        if _read(mark_url).get("writer") != writer:
            return False
    return True


def _this() -> dict[str, Any]:
    """The command of this process."""
    number = os.getpid()
    return {
        "command": " ".join([os.path.basename(sys.argv[0]), *(word for word in sys.argv[1:2] if word.isalpha())]),
        "process": number,
        "started": _started(number),
        "host": socket.gethostname(),
        "boot": _line("/proc/sys/kernel/random/boot_id"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def _started(process: Any) -> str:
    """When a process began, in ticks since the machine did; empty: there is none, or nobody knows."""
    fields = _line(f"/proc/{process}/stat").rpartition(")")[2].split()
    return fields[19] if fields else ""


def _line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def _busy(url: str, writer: dict[str, Any]) -> OptionError:
    details = {name: writer.get(name, "?") for name in ("command", "process", "host", "since")}
    description = "{command}, process {process} on {host} since {since}".format(**details)
    return OptionError(f"{url}: another command writes there ({description}); wait for its end, or name another place")
