"""What is asked of the stages."""

from dataclasses import dataclass

from rayad.errors import OptionError
from rayad.options import Amount, Count, GPUs, Minutes, Seed


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


NOTHING = Strips()
"""No pictures of what is learned."""


@dataclass(frozen=True)
class Search:
    """How long and how widely to search."""

    trials: Count = 40
    """Trials, with those of earlier calls."""
    minutes: Minutes = 60.0
    """Minutes after which no trial begins, and those that run are stopped."""
    concurrent: Count = 2
    """Trials at a time; each takes a logical CPU."""
    grace: Amount = 5
    """Epochs before which no trial is stopped; 0: none is ever stopped early."""
    seeds: Count = 3
    """Seeds with which the best settings, and those that would be used without a search, are fitted again."""
    seed: Seed = 0
    """Random seed of the sampler that proposes settings."""
    gpu: GPUs = 0.0
    """GPUs of each trial, such as 1, or 0.25 where four share one (never run on a GPU so far)."""
    wait_minutes: Minutes = 0.0
    """Minutes to wait for an autoscaling cluster to bring what the trials need; 0: it must be there."""

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
