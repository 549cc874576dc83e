"""Which sockets of a process tree listen, what they answer to who has no token, and ports that nobody has."""

import pickle
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address, ip_address

import grpc
import psutil
from ray.serve.generated.serve_pb2 import ASGIRequest
from ray.serve.generated.serve_pb2_grpc import ASGIServiceStub

Socket = tuple[str, int]
"""Address and port."""
WITHOUT = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "known", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
"""An environment that would open everything."""


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's alone, also as ::ffff:127.0.0.1."""
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback


def listening(root: psutil.Process) -> dict[Socket, str]:
    """Sockets of a process and all below it on which they listen, and the process that does."""
    sockets = {}
    with suppress(psutil.NoSuchProcess):
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error, IndexError):
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        address = connection.laddr
                        sockets[address.ip, address.port] = process.cmdline()[0].strip("\0 ")
    return sockets


@contextmanager
def watched(root: psutil.Process) -> Iterator[dict[Socket, str]]:
    """All sockets that listen while the block runs."""
    sockets: dict[Socket, str] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            sockets.update(listening(root))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield sockets
    finally:
        over.set()
        thread.join()


def refusals(port: int) -> list[bool]:
    """Of each method of a Ray Serve replica's port, whether it refuses a call without a token; the calls are sent."""
    request = ASGIRequest(pickled_request_metadata=pickle.dumps(Witness()), request_args=pickle.dumps(((), {})))
    refused = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in vars(ASGIServiceStub(channel)).values():
            try:
                answer = method(request, timeout=20)
                list(answer if isinstance(answer, Iterator) else ())
                refused.append(False)
            except grpc.RpcError as error:
                refused.append(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return refused


WITNESS = f"/tmp/rayad-was-here-{time.time_ns()}"
"""A file that exists if anybody unpickled a `Witness`."""


class Witness:
    """What makes a file where it is unpickled."""

    def __reduce__(self) -> tuple:
        return open, (WITNESS, "w")


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
