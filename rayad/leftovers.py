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
        [sys.executable, "-I", "-S", __file__, folder, str(os.getpid())],
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


def clear(folder: str, spared: int = 0) -> None:
    """Kill the processes that belong to a folder but for the one whose folder it is, and remove it."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        processes = [process for process in _marked(folder) if process != spared]
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        if not processes and not os.path.exists(folder):
            return
        time.sleep(0.05)


def _marked(folder: str) -> list[int]:
    """Processes that have the folder in their environment, or a file in it open, and have not ended (Linux)."""
    processes = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError):  # it has ended, or is another account's
            if name.isdigit() and int(name) != os.getpid() and _belongs(f"/proc/{name}", folder):
                processes.append(int(name))
    return processes


def _belongs(process: str, folder: str) -> bool:
    """A process that gives itself another title, as Ray's do, may lose its environment by that."""
    if f"{MARK}={folder}".encode() in _read(f"{process}/environ").split(b"\0"):
        return True
    for descriptor in os.listdir(f"{process}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was closed
            if os.readlink(f"{process}/fd/{descriptor}").startswith(f"{folder}/"):
                return True
    return False


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _wait_and_clear(folder: str, command: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()  # ends when nobody holds the other end
    clear(folder, command)


if __name__ == "__main__":
    _wait_and_clear(sys.argv[1], int(sys.argv[2]))
