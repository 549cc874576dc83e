"""Variables of the environment by which Ray and Ray Serve are set up for `rayad serve`, before they start."""

import os
import secrets

from rayad.errors import OptionError
from rayad.serving.front import SECRET
from rayad.serving.settings import Listening

SHARED = "/dev/shm"
"""Files in memory, on Linux."""


def set_up_ray_serve() -> None:
    """Set what Ray Serve does of its own accord, where the operator did not."""
    os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")  # at 0.1 it takes a tenth of a core
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # on a busy machine 5 s start it anew for ever


def set_up_proxy(listening: Listening) -> None:
    """Set up the HTTP proxy of a Ray of our own; call before it is started."""
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "rayad.serving.unanswered:middlewares")
    if listening.front != "none":
        os.environ[SECRET] = secrets.token_urlsafe(32)
        os.environ["FORWARDED_ALLOW_IPS"] = "127.0.0.1"  # HAProxy, which says who asks
    elif not listening.tls_in_front:  # else X-Forwarded-For of whoever is on this machine is believed
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "")


def keep_off_disk(store_bytes: int) -> None:
    """Let a Ray of our own hold uploads in memory alone; call before it is started.

    Args:
        store_bytes: size of its object store.

    Raises:
        OptionError: there is too little shared memory: Ray would take files of its temporary folder.
    """
    os.environ.setdefault("RAY_automatic_object_spilling_enabled", "0")
    if not os.path.isdir(SHARED):
        return
    os.environ.setdefault("RAY_object_spilling_directory", SHARED)  # of what a full store takes besides
    os.environ.setdefault("RAYAD_TMPDIR", SHARED)  # of results on their way to object storage
    there = os.statvfs(SHARED)
    free = there.f_bavail * there.f_bsize
    if free < store_bytes:
        raise OptionError(
            f"{SHARED} has {free / 1e6:.0f} MB free but needs {store_bytes / 1e6:.0f}, or uploads go to disk "
            "(docker run --shm-size 1g)"
        )
