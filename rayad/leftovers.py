"""A private folder for a command, and an end of all that the command started, also when it is killed.

Ray takes half a minute to notice that the command which started it was killed, and some of its processes never do; its
folder stays in any case. So a process of its own waits for the end of the command, whatever its kind, ends what the
command started, and removes the folder.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

MARK = "RAYAD_FOLDER"
"""Variable of the environment by which processes that belong to a folder are known: its value is the folder."""
LONGEST = 24
"""Characters of a temporary folder's path below which Ray's sockets, of at most 107 characters, have room."""
PATIENCE_S = 20.0
"""How long processes are ended that start others meanwhile."""


@contextmanager
def private_folder() -> Iterator[str]:
    """A folder that its owner alone can enter, until the block ends.

    Temporary files lie in it. Processes that are started inside inherit `MARK`; those that are left when the block
    ends, or when this process is killed, are killed, and the folder is removed.
    """
    temporary = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="rayad-", dir=temporary if len(temporary) < LONGEST else "/tmp")
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the command
        env={},  # it belongs to no folder
    )
    before = {name: os.environ.get(name) for name in (MARK, "TMPDIR")}
    os.environ.update(dict.fromkeys(before, folder))
    tempfile.tempdir = folder
    try:
        yield folder
    finally:
        tempfile.tempdir = None
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        assert keeper.stdin is not None  # a pipe was asked for
        keeper.stdin.close()
        keeper.wait()


def clear(folder: str) -> None:
    """Kill the processes that belong to a folder, and remove it."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        processes = _marked(folder)
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        if not processes and not os.path.exists(folder):
            return
        time.sleep(0.05)


def _marked(folder: str) -> list[int]:
    """Processes that have the folder in their environment and have not ended, as Linux lists them."""
    mark = f"{MARK}={folder}".encode()
    processes = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError):  # it has ended, or is another account's
            if name.isdigit() and mark in _read(f"/proc/{name}/environ").split(b"\0"):
                processes.append(int(name))
    return processes


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _wait_and_clear(folder: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()  # ends when nobody holds the other end
    clear(folder)


if __name__ == "__main__":
    _wait_and_clear(sys.argv[1])
