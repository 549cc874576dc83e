"""What this process does at signals, says on standard error and has in its environment, for a block of code; and where
it listens."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def same_signal(number: signal.Signals) -> Iterator[None]:
    """What this process does at a signal, if it does something of its own, it does again after the block.

    ray.init() sets what Ray does at SIGTERM. A trainer of Ray Train sets what it does at SIGINT and leaves that behind:
    Ctrl-C in a later stage would be told to workers that have ended, and to nobody else.
    """
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if before not in (None, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
            signal.signal(number, before)


@contextmanager
def muted() -> Iterator[None]:
    """Nothing goes to standard error, of this process and of those that begin in the block."""
    if not sys.stderr:
        yield
        return
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        for file in (kept, nothing):
            os.close(file)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """These variables, for what begins in this block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def listening(address: str, port: int = 0) -> socket.socket:
    """A socket that listens at an IP address; port 0: at one where nobody else does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)
