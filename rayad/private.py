"""A Ray that a command starts for itself answers that command alone; which cluster an option names."""

import os
import secrets
import socket
import time

from rayad.errors import ClusterError

PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one way to a Ray whose own servers listen on 127.0.0.1
    "RAY_AUTH_MODE": "token",  # replicas of Ray Serve listen on all addresses even then, and run what they are sent
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": "10",  # of a task that is ended for its memory; else without end
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}
"""Environment of a Ray that a command starts for itself, with a token in RAY_AUTH_TOKEN besides."""
_own_token = secrets.token_hex(32)
"""Of every Ray that this process starts; its children find it in their environment, and nobody else does."""


def given(address: str) -> str:
    """Address of the cluster that an option or RAY_ADDRESS names; "" where a command starts a Ray of its own."""
    address = address or os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def await_cluster(address: str, seconds: float) -> None:
    """Wait for whoever listens at HOST:PORT; ClusterError if nobody does. Ray asks for minutes, line by line."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + seconds
    while port.isdigit() and "/" not in host:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), seconds).close()
        except (OSError, OverflowError) as error:
            if time.monotonic() > until or isinstance(error, OverflowError | socket.gaierror):
                raise ClusterError(f"no Ray cluster answers at {address}: {error}") from error
        time.sleep(1)


def keep_private() -> None:
    """Let a Ray that this process starts answer its own processes alone; call before Ray is imported.

    It listens on the loopback, and what Ray Serve opens besides asks for a random token. The environment cannot turn
    that off. A cluster that others start and an address names is not touched.
    """
    os.environ.update(PRIVATE, RAY_AUTH_TOKEN=_own_token)
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
