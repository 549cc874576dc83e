"""What a run may use, and what it shows."""

import os
from dataclasses import dataclass

from rayad.errors import OptionError

PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one way to a Ray that listens on 127.0.0.1 alone
    "RAY_AUTH_MODE": "disabled",  # nobody else reaches the loopback
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of a Ray that a command starts for itself."""


@dataclass(frozen=True)
class Workers:
    """How many processes learn, and on what."""

    number: int = 2
    """Processes; each takes an equal part of every global batch."""
    gpu: bool = False
    """Give each a GPU and let them agree through NCCL (never run on a GPU so far); else CPUs and gloo."""
    max_failures: int = 1
    """Times that a lost worker is replaced before the run ends; training goes on from its checkpoint."""


@dataclass(frozen=True)
class Strips:
    """Pictures of what is learned, while it is learned."""

    every: int = 0
    """Epochs from one to the next: originals, reconstructions and draws from random latents; 0: none."""
    count: int = 8
    """Patches of the validation split that are shown."""
    tensorboard: bool = False
    """Write event files for TensorBoard too, with the losses of every epoch."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.count < 1:
            raise OptionError(f"strips are at least 0 epochs apart and show a patch, not {self.every} and {self.count}")


NOTHING = Strips()
"""No pictures of what is learned."""


def keep_private() -> None:
    """Let a Ray that this process starts listen on the loopback alone; call before Ray is imported.

    What the environment already says stays. A cluster that others start and an address names is not touched.
    """
    for name, value in PRIVATE.items():
        os.environ.setdefault(name, value)
