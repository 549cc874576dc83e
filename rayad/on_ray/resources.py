"""What a run may use, and what it shows."""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from rayad.errors import OptionError
from rayad.options import Amount, Count, Minutes, Port, Seed, Share, Within

PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one way to a Ray whose own servers listen on 127.0.0.1
    "RAY_AUTH_MODE": "token",  # replicas of Ray Serve listen on all addresses even then, and run what they are sent
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": "10",  # of a task that is ended for its memory; else without end
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}
"""Environment of a Ray that a command starts for itself, with a token in RAY_AUTH_TOKEN besides."""
FEW = 8
"""Pieces of work that are done in this process before a Ray of many would have started."""
_own_token = secrets.token_hex(32)
"""Of every Ray that this process starts; its children find it in their environment, and nobody else does."""


@dataclass(frozen=True)
class Workers:
    """How many processes learn, and on what."""

    number: Annotated[int, Within(1, 100_000)] = 2
    """Processes; each takes an equal part of every global batch."""
    gpu: bool = False
    """Give each a GPU and let them agree through NCCL (never run on a GPU so far); else CPUs and gloo."""
    cpus: Annotated[float, Within(0, 100_000)] = 1.0
    """Logical CPUs of each."""
    least: Annotated[int, Within(0, 100_000)] = 0
    """Go on with as few when nodes are lost, and with more again when they come; 0: always with all."""
    max_failures: Amount = 3
    """Times that lost workers are replaced before the run ends; it goes on from its checkpoint."""
    wait_minutes: Minutes = 0.0
    """How long to wait for an autoscaling cluster to bring what is asked for; 0: it must be there."""

    def __post_init__(self) -> None:
        if self.number < 1 or not 0 <= self.least <= self.number:
            raise OptionError(f"workers are at least 1, and `least` is no more than they: {self.number}, {self.least}")
        if self.cpus < 0 or self.max_failures < 0 or not self.wait_minutes >= 0:
            raise OptionError("cpus, max_failures and wait_minutes of workers must be at least 0")

    @property
    def counts(self) -> range:
        """Numbers of workers that the run may have."""
        return range(self.least or self.number, self.number + 1)

    @property
    def resources(self) -> dict[str, float]:
        """What each takes of a node, as Ray names it."""
        return {"CPU": self.cpus} | ({"GPU": 1.0} if self.gpu else {})


@dataclass(frozen=True)
class Strips:
    """Pictures of what is learned, while it is learned."""

    every: Amount = 0
    """Epochs from one to the next: originals, reconstructions and draws from random latents; 0: none."""
    count: Count = 8
    """Patches of the validation split that are shown."""
    tensorboard: bool = False
    """Write event files for TensorBoard too, with the losses of every epoch."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.count < 1:
            raise OptionError(f"strips are at least 0 epochs apart and show a patch, not {self.every} and {self.count}")


@dataclass(frozen=True)
class Search:
    """How long and how widely to search."""

    trials: Count = 40
    """Trials, with those of earlier calls."""
    minutes: Minutes = 60.0
    """After which no trial begins, and those that run are stopped."""
    concurrent: Count = 2
    """Trials at a time; each takes a logical CPU."""
    grace: Amount = 5
    """Epochs before which no trial is stopped; 0: none is ever stopped early."""
    seeds: Count = 3
    """Seeds with which the best settings, and those that would be used without a search, are fitted again."""
    seed: Seed = 0
    """Of what is proposed."""
    gpu: bool = False
    """Give each trial a GPU (never run on a GPU so far)."""
    wait_minutes: Minutes = 0.0
    """How long to wait for an autoscaling cluster to bring what the trials need; 0: it must be there."""

    def __post_init__(self) -> None:
        for name in ("trials", "concurrent", "seeds"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} of a sweep must be at least 1, not {getattr(self, name)}")
        if not self.minutes > 0 or self.grace < 0:
            raise OptionError(f"a sweep takes more than 0 minutes and grace of 0 or more: {self.minutes}, {self.grace}")
        if not self.wait_minutes >= 0:
            raise OptionError(f"wait_minutes of a sweep must be at least 0, not {self.wait_minutes}")

    @property
    def device(self) -> str:
        """Where a trial learns, as torch names it; of the GPUs a process sees its own."""
        return "cuda" if self.gpu else "cpu"


NOTHING = Strips()
"""No pictures of what is learned."""


@dataclass(frozen=True)
class Listening:
    """Where the service listens."""

    host: str = "127.0.0.1"
    """Name or address; others than this machine's own need tokens and TLS."""
    port: Port = 8000
    certificate: str = ""
    """File of a TLS certificate (PEM), with `key`."""
    key: str = ""
    """File of its private key."""
    tls_in_front: bool = False
    """A proxy in front ends TLS."""
    front: Literal["haproxy", "none"] = "haproxy"
    """What listens there and bounds size and time of a request's headers; none: on this machine alone."""

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise OptionError("a certificate and its key go together")
        for file in filter(None, (self.certificate, self.key)):
            if not os.access(file, os.R_OK):
                raise OptionError(f"cannot read {file}")

    @property
    def name(self) -> str:
        """The host as a URL has it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def url(self) -> str:
        """The address of the viewer."""
        return f"http{'s' if self.certificate else ''}://{self.name}:{self.port}"


@dataclass(frozen=True)
class Replicas:
    """How many processes do what; each takes one CPU."""

    pictures: Annotated[int, Within(1, 10_000)] = 1
    """That decode images and find the tissue; on a cluster up to as many."""
    scorers: Annotated[int, Within(1, 10_000)] = 1
    """That encode and score."""
    gpu: Share = 0.0
    """Share of a GPU that each scorer takes (never run on a GPU so far)."""
    drawers: Annotated[int, Within(1, 10_000)] = 1
    """That draw overlays, healthy versions and DICOM objects."""
    queue: Count = 64
    """Images under way and waiting above which the answer is 503."""


def given(address: str) -> str:
    """Address of the cluster that an option or RAY_ADDRESS names; "" where a command starts a Ray of its own."""
    address = address or os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def spread(address: str, label: str, lost: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    """A function that calls another for each of some arguments, as `tasks` of cluster.py, wherever that is quickest.

    Args:
        address: of a cluster; "": many are done on a Ray that is started for them, few in this process.
        lost: as of `tasks`.
    """

    def run(function: Callable[..., Any], shared: tuple, arguments: Sequence[tuple]) -> Iterator[Any]:
        if not arguments or (len(arguments) <= FEW and not given(address)):
            yield from (function(*shared, *own) for own in arguments)
            return
        from rayad.on_ray.cluster import cluster, tasks  # which takes seconds

        with cluster(address):
            yield from tasks(function, arguments, len(arguments), label, shared, lost=lost)

    return run


def keep_private() -> None:
    """Let a Ray that this process starts answer its own processes alone; call before Ray is imported.

    It listens on the loopback, and what Ray Serve opens besides asks for a random token. The environment cannot turn
    that off. A cluster that others start and an address names is not touched.
    """
    os.environ.update(PRIVATE, RAY_AUTH_TOKEN=_own_token)
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
