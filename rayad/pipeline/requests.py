"""What is asked of the stages."""

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from rayad.density.em import EM
from rayad.errors import OptionError
from rayad.fit import Schedule
from rayad.options import Amount, Count, GPUs, Minutes, Names, Seed, Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Strips:
    """Pictures of what is learned, while it is learned."""

    every: Amount = 0
    """Epochs between two strips of originals, reconstructions and draws from random latents; 0: no strips."""
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
class TrainRequest:
    """An image model, and how it learns."""

    model: str = "cae"
    """An image model that rayad knows: cae, bvae, ... (`rayad list models`)."""
    settings: Settings = ()
    """Fields of the model's Config, such as latents=32 or padding=same."""
    schedule: Schedule = Schedule()
    strips: Strips = Strips()


@dataclass(frozen=True)
class DensityRequest:
    """A density, and how it is fitted to the latents of a model."""

    density: str = "spn"
    """A density that rayad knows: spn, mixture, ... (`rayad list densities`)."""
    settings: Settings = ()
    """Fields of the density's Config, such as replicas=20."""
    context: Names = ()
    """Facts about a place that stand beside the latents: skin_mm, rel_row, rel_col, ring_density, image_density; scores
    are then in context."""
    smooth: bool = False
    """Fit it to the smoothest third of the patches alone: the background of a likelihood ratio."""
    classes: str = ""
    """Column of the index, such as density, whose values are classes: a circuit with as many roots as values learns one
    root for each."""
    em: EM = EM()


@dataclass(frozen=True)
class TeachRequest:
    """What is learned from labels, and from which ones."""

    kind: Literal["logistic", "network", "forest", "boosting"] = "logistic"
    """How scores become one: logistic regression, a network of one hidden layer, a random forest, gradient boosting."""
    features: Literal["scores", "scores-and-latents"] = "scores"
    """Describe a place by the detectors' scores alone, or also by the latents of the first that has a model."""
    labels: Literal["lesions", "images"] = "lesions"
    """Learn from marked lesions, or from images of which it is known alone that there is a lesion."""
    readings: str = ""
    """Table of findings that a reader accepted or rejected, which teach; empty: the data set's own lesions do."""
    marked: Amount = 0
    """Number of the data set's marked lesions that teach, drawn by the seed; 0: all of those for choices."""
    patients: Names = ()
    """Patients of the data set whose lesions teach; none: those of the development split."""
    lesions: Names = ()
    """Kinds of lesion that teach, such as mass; none: all kinds."""
    seed: Seed = 0
    """Random seed of what is drawn."""

    def __post_init__(self) -> None:
        if self.readings and (self.labels == "images" or self.marked or self.patients or self.lesions):
            raise OptionError(
                "readings say which findings teach: give no labels=images, marked, patients or lesions too"
            )
        if self.labels == "images" and self.marked:
            raise OptionError("marked counts lesions with a known place; labels of images have none")


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
    """Minutes to wait for an autoscaling cluster to provide what the trials need; 0: it must be there already."""

    def __post_init__(self) -> None:
        for name in ("trials", "concurrent", "seeds"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} of a sweep must be at least 1, not {getattr(self, name)}")
        if not self.minutes > 0 or self.grace < 0:
            raise OptionError(f"minutes must be above 0 and grace at least 0, not {self.minutes} and {self.grace}")
        if not self.wait_minutes >= 0:
            raise OptionError(f"wait_minutes of a sweep must be at least 0, not {self.wait_minutes}")

    @property
    def device(self) -> str:
        """Where a trial learns, as torch names it; of the GPUs a process sees its own."""
        return "cuda" if self.gpu else "cpu"


def part(kind: type[T], options: Any) -> T:
    """The request among a command's options, which are more."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})  # type: ignore[reportArgumentType]
