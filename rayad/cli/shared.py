"""Options that several commands have; each is written here once."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from rayad import bounds, catalog, storage
from rayad.bounds import Bounds
from rayad.datasets import splits
from rayad.datasets.exam import Images, name_of, origin_of
from rayad.options import Amount, GPUs, Millimetres, Minutes, Settings, SpacingOrNone
from rayad.pool import Workers

Several = Annotated[tuple[str, ...], tyro.conf.arg(metavar="URL [URL ...]")]
Forced = Annotated[tuple[str, ...], tyro.conf.arg(metavar="DOUBT ...")]


@dataclass(frozen=True, kw_only=True)
class OnCluster:
    """A command that runs on Ray."""

    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""


@dataclass(frozen=True, kw_only=True)
class ReadsImages(OnCluster):
    """A command that reads images."""

    force: Forced = ()
    """Doubts about an image that are overruled: polarity, frame, size, depth, kind (docs/data.md)."""
    bounds: Bounds = field(default_factory=bounds.current)


@dataclass(frozen=True, kw_only=True)
class OnGpu:
    """A command that scores images."""

    gpu: GPUs = 0.0
    """GPUs of each process that scores, such as 1, or 0.25 where four share one; 0: CPUs alone."""
    wait_minutes: Minutes = 0.0
    """Minutes to wait for an autoscaling cluster to provide a GPU; 0: it must be there already."""

    @property
    def scorers(self) -> Workers:
        """The resources of each process that scores."""
        return Workers(1, self.gpu, wait_minutes=self.wait_minutes)


@dataclass(frozen=True, kw_only=True)
class OfDataset(ReadsImages):
    """A command that reads a data set."""

    dataset: str
    """A data set that rayad knows: mias, folder, phantom, ... (`rayad list datasets`)."""
    source: str = ""
    """Folder or URL of the images; phantom needs none."""
    settings: Settings = ()
    """Fields of the data set, such as healthy=true."""
    spacing_mm: SpacingOrNone = 0.0
    """Pixel spacing, mm, of images that do not state it; sets the data set's field of this name."""
    shares: Settings = ()
    """Shares of the patients in each split, such as train=0.9 validation=0.1 calibration=0 (docs/data.md)."""

    def opened(self) -> Images:
        """The data set."""
        return open_dataset(self.dataset, self.source, self.settings, self.spacing_mm, self.shares)

    def named(self, dataset: Images) -> tuple[str, str]:
        """Name and source of the data set, as results say them: of a list, those of what was listed."""
        origin = origin_of(dataset)
        return (self.dataset, self.source) if origin is dataset else (name_of(origin), vars(origin)["source"])


@dataclass(frozen=True, kw_only=True)
class MayFail:
    """A command that scores images of a data set, of which some may be damaged."""

    max_failures: Amount = 0
    """Images that may fail before there is no result."""


@dataclass(frozen=True, kw_only=True)
class WithStep:
    """A command that scores places of a data set's images, for calibration."""

    step_mm: Millimetres = 3.2
    """Distance of the scored places, mm."""


def open_dataset(
    name: str, source: str, settings: tuple[str, ...], spacing_mm: float, shares: tuple[str, ...] = ()
) -> Images:
    """The data set of this name at this source, with NAME=VALUE settings, the spacing among them."""
    fields = [f"source={place(source)}", *all_settings(settings, spacing_mm)]
    return splits.divided(catalog.configure("datasets", name, fields), splits.division(shares))


def all_settings(settings: tuple[str, ...], spacing_mm: float) -> tuple[str, ...]:
    """A data set's settings, the spacing among them."""
    return (*((f"spacing_mm={spacing_mm!r}",) if spacing_mm else ()), *settings)


def place(url: str) -> str:
    """A URL or path from the root; "" stays."""
    return storage.absolute(url) if url else ""
