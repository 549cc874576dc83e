"""What a run may use."""

import os
from dataclasses import dataclass

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


def keep_private() -> None:
    """Let a Ray that this process starts listen on the loopback alone; call before Ray is imported.

    What the environment already says stays. A cluster that others start and an address names is not touched.
    """
    for name, value in PRIVATE.items():
        os.environ.setdefault(name, value)
