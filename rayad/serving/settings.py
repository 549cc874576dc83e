"""Where the service listens, and how many processes answer."""

import os
from dataclasses import dataclass
from typing import Annotated, Literal

from rayad.errors import OptionError
from rayad.options import Count, Port, Share, Within


@dataclass(frozen=True)
class Listening:
    """Where the service listens."""

    host: str = "127.0.0.1"
    """Name or address; others than this machine's own need tokens and TLS."""
    port: Port = 8000
    """Port on which the service answers."""
    certificate: str = ""
    """File of a TLS certificate (PEM), with `key`."""
    key: str = ""
    """File of its private key."""
    tls_in_front: bool = False
    """A proxy in front ends TLS."""
    front: Literal["haproxy", "none"] = "haproxy"
    """Proxy that listens there and bounds size and time of a request's headers; none: on this machine alone."""

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
    """Processes that decode images and find the tissue; on a cluster up to as many."""
    scorers: Annotated[int, Within(1, 10_000)] = 1
    """Processes that encode and score."""
    gpu: Share = 0.0
    """Share of a GPU that each scorer takes (never run on a GPU so far)."""
    drawers: Annotated[int, Within(1, 10_000)] = 1
    """Processes that draw overlays, healthy versions and DICOM objects."""
    queue: Count = 64
    """Images under way and waiting above which the answer is 503."""
