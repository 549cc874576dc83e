"""Decoding in a process of its own: what a file does to its decoder, it does to that process alone.

Decoders are libraries in C and C++ that believe what a file says. A damaged one, or one that was made for it, can end
their process, take all memory, or never come to an end; here each of these is an `ImageError` of that image. The
process is kept for the next image, and another takes its place when it has ended. Pixels come back in shared memory.
"""

import atexit
import importlib
import json
import math
import mmap
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from rayad import bounds, errors
from rayad.errors import ImageError, RayadError

LONGEST = 1 << 20
"""Bytes of a message; the pixels are not in it."""
EVERY_S = 0.05
"""How often it is asked whether an image is still waited for."""
START_S = 60.0
"""How long a process may take to start, on a busy machine."""
LATER_S = 5.0
"""Seconds after its time at which a process ends itself, if nobody else has ended it."""
DTYPES = ("bool", "uint8", "uint16", "float32")
"""Of pixels."""


def apart(function: str, data: bytes, *arguments: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Call ``function(data, *arguments)`` in a process of its own.

    Args:
        function: "module:name" below `rayad.imaging`; it returns facts (a JSON object) and an array.
        data: of a file.
        arguments: as JSON can hold them; the first is the file's name.

    Raises:
        ImageError: what the function raises, or the process ended, had too little memory, or took too long.
    """
    limits = bounds.current()
    limits.require_bytes(len(data), arguments[0])
    process = _taken(limits)
    try:
        answer = process.call(function, data, arguments)
    except BaseException:
        process.end()
        raise
    with _lock:
        _idle.append(process)
    if isinstance(answer, RayadError):
        raise answer
    return answer


class _Process:
    """A process that decodes, one image after the other."""

    def __init__(self, limits: bounds.Bounds) -> None:
        self.limits, self._ready = limits, False
        self._channel, child_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with child_socket:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "rayad.imaging.decoder", str(child_socket.fileno())],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
                pass_fds=[child_socket.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a library's last words may quote the file
                start_new_session=True,  # Ctrl-C is for the command
            )

    def call(
        self, function: str, data: bytes, arguments: Sequence[Any]
    ) -> tuple[dict[str, Any], np.ndarray] | RayadError:
        """What the function returns or raises, see `apart`; an ImageError that it raises is the end of this process."""
        name = arguments[0]
        if not self._ready:
            self._await(START_S, f"{name}: no process to decode it started within {START_S:g} s")
            self._ready = bool(self._channel.recv(1))
        memory = _shared(data)
        try:
            socket.send_fds(self._channel, [json.dumps([function, arguments]).encode()], [memory])
        except OSError as error:
            raise self._ended(name) from error
        finally:
            os.close(memory)
        self._await(self.limits.decode_seconds, self._late(name))
        return self._answer(name)

    def _await(self, seconds: float, otherwise: str) -> None:
        """Wait until there is an answer or the process has ended."""
        until = time.monotonic() + seconds
        while not select.select([self._channel], [], [], EVERY_S)[0]:
            bounds.go_on()
            if time.monotonic() > until:
                raise ImageError(otherwise)

    def _answer(self, name: str) -> tuple[dict[str, Any], np.ndarray] | RayadError:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._channel, LONGEST, 1)
        except OSError as error:
            raise self._ended(name) from error
        if not message:
            raise self._ended(name)
        answer = json.loads(message)
        if "error" in answer:
            return errors.named(*answer["error"])
        with os.fdopen(descriptors[0], "rb") as file:
            return answer["facts"], _pixels(file.fileno(), answer["dtype"], answer["shape"])

    def _ended(self, name: str) -> ImageError:
        """Why the process is not there any more."""
        code = self._child.wait()
        if code == -signal.SIGALRM:
            return ImageError(
                f"{name}: decoding took longer than bounds.decode_seconds={self.limits.decode_seconds:g} s"
            )
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        memory = self.limits.memory_mb
        return ImageError(
            f"{name}: damaged, its decoder ended by {cause}, or takes more than bounds.memory_mb={memory}"
        )

    def _late(self, name: str) -> str:
        return f"{name}: decoding took longer than bounds.decode_seconds={self.limits.decode_seconds:g} s"

    def end(self) -> None:
        """Kill it."""
        self._channel.close()
        self._child.kill()
        self._child.wait()

    @property
    def lives(self) -> bool:
        """It has not ended."""
        return self._child.poll() is None


_idle: list[_Process] = []
_lock = threading.Lock()


def _taken(limits: bounds.Bounds) -> _Process:
    """One that is idle and has these bounds, or a new one."""
    with _lock:
        for process in [process for process in _idle if process.limits != limits or not process.lives]:
            _idle.remove(process)
            process.end()
        return _idle.pop() if _idle else _Process(limits)


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end()


os.register_at_fork(after_in_child=_idle.clear)  # what the parent has asked them is not for the child


def _shared(data: bytes) -> int:
    """The descriptor of memory that holds the data; whoever is given it can read them."""
    memory = _memory()
    written = 0
    while written < len(data):
        written += os.write(memory, memoryview(data)[written:])
    return memory


def _memory() -> int:
    """A file without a name, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("rayad")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _pixels(memory: int, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """The array in shared memory, writable for whoever asked for it."""
    if dtype not in DTYPES or os.fstat(memory).st_size < math.prod(shape) * np.dtype(dtype).itemsize:
        raise ImageError(f"a decoder answers with {shape} values of {dtype}, which are not there")
    if not math.prod(shape):
        return np.empty(shape, dtype)
    mapping = mmap.mmap(memory, 0, access=mmap.ACCESS_COPY)
    return np.frombuffer(mapping, dtype, math.prod(shape)).reshape(shape)


def _serve(channel: socket.socket) -> None:
    """Answer, until nobody asks any more."""
    for module in ("raster", "dicom"):
        importlib.import_module(f"rayad.imaging.{module}")
    channel.send(b"!")
    limits, base = bounds.current(), _data_bytes()
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, LONGEST, 1)
        if not message:
            return
        function, (name, *arguments) = json.loads(message)
        with os.fdopen(descriptors[0], "rb") as file:
            file.seek(0)
            _bound_memory(base + limits.memory_mb * 1_000_000 + os.fstat(file.fileno()).st_size)
            signal.setitimer(signal.ITIMER_REAL, limits.decode_seconds + LATER_S)  # its signal ends this process
            answer, pixels = _called(function, file.read(), name, arguments)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if pixels is None:
            channel.send(json.dumps(answer).encode())
        else:
            _send(channel, answer, pixels)


def _called(function: str, data: bytes, name: str, arguments: list[Any]) -> tuple[dict[str, Any], np.ndarray | None]:
    """Facts and pixels, or the error."""
    module, _, called = function.partition(":")
    try:
        facts, pixels = getattr(importlib.import_module(f"rayad.imaging.{module}"), called)(data, name, *arguments)
        return {"facts": facts, "dtype": str(pixels.dtype), "shape": pixels.shape}, pixels
    except RayadError as error:
        return {"error": [type(error).__name__, str(error)]}, None
    except MemoryError:
        memory = bounds.current().memory_mb
        return {"error": ["ImageError", f"{name}: damaged, or takes more than bounds.memory_mb={memory}"]}, None
    except BaseException as error:  # noqa: BLE001, imagecodecs has errors of its own, and Rust's panic is no Exception
        return {"error": ["ImageError", f"{name}: damaged image: {type(error).__name__}"]}, None


def _send(channel: socket.socket, answer: dict[str, Any], pixels: np.ndarray) -> None:
    memory = _memory()
    os.ftruncate(memory, max(1, pixels.nbytes))
    with mmap.mmap(memory, 0) as mapping:
        np.copyto(np.frombuffer(mapping, pixels.dtype, pixels.size).reshape(pixels.shape), pixels)
    socket.send_fds(channel, [json.dumps(answer).encode()], [memory])
    os.close(memory)


def _data_bytes() -> int:
    """Private memory that this process may write to, as RLIMIT_DATA counts it."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5]) * mmap.PAGESIZE


def _bound_memory(size: int) -> None:
    """Let allocations fail above it."""
    resource.setrlimit(resource.RLIMIT_DATA, (size, resource.getrlimit(resource.RLIMIT_DATA)[1]))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as child_socket:
        _serve(child_socket)
