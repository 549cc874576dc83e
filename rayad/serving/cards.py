"""Which detectors are served: a name, the bundle behind it, and its card."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rayad import storage
from rayad.errors import OptionError
from rayad.heatmaps.answers import Card, DetectorName
from rayad.imaging.picture import Preprocessing, described
from rayad.scoring import bundle, counterfactual
from rayad.scoring.detector import STEP_MM, Detector


@dataclass(frozen=True)
class Served:
    """A detector that is served; it stays what it is while a request is under way, whatever replaces it."""

    card: Card
    """What is told of it."""
    url: str
    """Of its bundle."""
    preprocessing: Preprocessing
    whole: bool
    """Does it need the image as it came? Members of a combination may prepare it in ways of their own."""

    @property
    def name(self) -> DetectorName:
        """Its name and hash, as answers tell them."""
        return DetectorName(name=self.card.name, sha256=self.card.sha256)

    @property
    def key(self) -> str:
        """Bundle and content: what replicas keep it by."""
        return f"{self.card.sha256} {self.url}"


TOLD = ("dataset", "corpus", "made_of", "seed", "commit", "versions", "train_minutes")
"""Of a bundle's provenance; where its corpus came from, machines and faults of whoever trained it are not told."""


def load(key: str) -> Detector:
    """The detector of a key.

    Raises:
        OptionError: another bundle is there by now.
        StorageError, FormatError: it cannot be read.
    """
    sha256, _, url = key.partition(" ")
    detector = bundle.load(url)
    if (current := bundle.sha256(url)) != sha256:
        raise OptionError(f"{url}: another detector is there by now ({current[:12]}, was {sha256[:12]})")
    return detector


def require(detectors: Mapping[str, str]) -> None:
    """An error of `served` where one of these detectors, name -> URL, cannot be served."""
    for name, url in detectors.items():
        served(name, url)


def served(name: str, url: str) -> Served:
    """The detector of a bundle; of a link to one, what it leads to now: it may be turned while replicas still load.

    Raises:
        OptionError: it is not calibrated, so it has no p-values.
        StorageError, FormatError: it cannot be read.
    """
    url = url if "://" in url else os.path.realpath(url)
    bundle.describe(url)  # it is there, and not too large to be read
    sha256 = bundle.sha256(url)
    detector = load(f"{sha256} {url}")
    if detector.calibration is None:
        raise OptionError(f"detector {name!r} at {url} is not calibrated, so it has no p-values: run rayad calibrate")
    card = Card(
        name=name,
        sha256=sha256,
        score=detector.score.name,
        summary=detector.summary(),
        calibration_patients=detector.calibration.patients,
        p_value_floor=detector.calibration.floor,
        step_mm=detector.provenance.get("step_mm", STEP_MM),
        preprocessing=described(detector.preprocessing),
        counterfactual=not counterfactual.lacking(detector),
        provenance={name: value for name, value in detector.provenance.items() if name in TOLD},
    )
    return Served(card, url, detector.preprocessing, whole=bool(detector.members))


def named(urls: Iterable[str]) -> dict[str, str]:
    """Name -> URL of bundles that are given as NAME=URL, or as a URL whose folder gives the name.

    Raises:
        OptionError: none, or two of one name.
    """
    urls_by_name: dict[str, str] = {}
    for text in urls:
        name, equals, url = text.partition("=")
        if not equals or "/" in name:
            name, url = text.rstrip("/").rsplit("/", 1)[-1], text
        if name in urls_by_name:
            raise OptionError(f"two detectors are called {name!r}; give another name as NAME=URL")
        urls_by_name[name] = storage.absolute(url)
    if not urls_by_name:
        raise OptionError("a server needs at least one detector, as URL or NAME=URL")
    return urls_by_name
