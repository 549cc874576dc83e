"""A proxy on loopback before the S3 server that does what networks do: throttles, cuts, refuses."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

REQUEST = re.compile(rb"^(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP/1\.1\r\n")
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
THROTTLED = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(SLOW_DOWN), SLOW_DOWN)
)
BLOCK = 65536
Fault = Callable[[int, str, str], str]
"""Number of the request, its method and its path -> "pass", "throttle" or "cut"."""


@dataclass
class Proxy:
    """Passes connections on and disturbs those that the rule says."""

    server: str
    fault: Fault
    cut_after: int = 1000
    """Bytes of an answer that still arrive before a connection is cut."""
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and what was done, of each request."""
    endpoint: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    listening: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=64))
    clients: set[socket.socket] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.port = self.listening.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.serve, args=(self.listening,), daemon=True).start()

    def leave(self, seconds: float) -> None:
        """Be out of reach from now on, so long; connections break and none can be made."""
        self.close()
        threading.Timer(seconds, self._come_back).start()

    def close(self) -> None:
        """Break every connection and take no more."""
        with suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for a connection
        self.listening.close()
        for client in list(self.clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _come_back(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", self.port), backlog=64)
        threading.Thread(target=self.serve, args=(self.listening,), daemon=True).start()

    def count(self, done: str) -> int:
        """How many requests were passed, throttled or cut."""
        return sum(what == done for _, _, what in self.seen)

    def serve(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client: socket.socket) -> None:
        self.clients.add(client)
        where = urlsplit(self.server)
        with client, socket.create_connection((where.hostname, where.port)) as server:
            left = [-1]  # bytes of the answer that may pass; -1: all
            answers = threading.Thread(target=self._answers, args=(server, client, left), daemon=True)
            answers.start()
            try:
                while data := client.recv(BLOCK):
                    what = self._decide(data)
                    if what == "throttle":
                        client.sendall(THROTTLED)
                        client.shutdown(socket.SHUT_WR)
                        while client.recv(BLOCK):  # a reset would take the answer away
                            pass
                        return
                    if what == "cut":
                        left[0] = self.cut_after
                    server.sendall(data)
            except OSError:
                pass
            finally:
                self.clients.discard(client)
                with suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)

    def _decide(self, data: bytes) -> str:
        """What to do with these bytes; those that start no request are passed."""
        found = REQUEST.match(data)
        if not found:
            return "pass"
        method, path = found[1].decode(), found[2].decode()
        with self.lock:
            what = self.fault(len(self.seen), method, path)
            self.seen.append((method, path, what))
        return what

    def _answers(self, server: socket.socket, client: socket.socket, left: list[int]) -> None:
        with suppress(OSError):
            while data := server.recv(BLOCK):
                if left[0] < 0:
                    client.sendall(data)
                    continue
                client.sendall(data[: left[0]])
                left[0] = max(0, left[0] - len(data))
                if not left[0]:
                    break
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def faulty(server: str, fault: Fault, cut_after: int = 1000) -> Iterator[Proxy]:
    """A proxy before a server, as long as the block lasts."""
    proxy = Proxy(server, fault, cut_after)
    try:
        yield proxy
    finally:
        proxy.close()
