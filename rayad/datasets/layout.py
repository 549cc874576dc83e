"""Folders that say what is in their images, as MVTec AD and BMAD have them.

    train/good/NAME                                healthy
    test/good/NAME, test/KIND/NAME                 healthy, or with an anomaly of this kind
    ground_truth/KIND/NAME_mask                    where it is (MVTec AD)
    test/KIND/img/NAME, test/KIND/label/NAME       image and mask (BMAD); so too below train and valid

All may lie below further folders, one a category. rayad's splits are its own, by patient.
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rayad.datasets.labels import COLUMNS, Row

SPLITS = {"train": "train", "test": "test", "valid": "valid", "val": "valid", "validation": "valid"}
HEALTHY = "good"
TRUTH = "ground_truth"
IMAGES, MASKS = ("img", "image", "images"), ("label", "labels", "mask", "masks")


@dataclass(frozen=True)
class _Place:
    """What a path says."""

    category: str
    split: str
    kind: str
    """Of the anomaly; HEALTHY: there is none."""
    stem: str
    is_mask: bool

    @property
    def image(self) -> tuple[str, str, str, str]:
        """Equal for an image and its mask."""
        return self.category, self.split, self.kind, self.stem


def read(paths: Iterable[str]) -> tuple[dict[str, list[Row]], set[str]]:
    """What the folders say of each image, as labels.csv would, and which paths are of masks.

    Nothing of either where they have not this layout.

    Args:
        paths: of images and masks, below the data set's folder.
    """
    places = _places(paths)
    masks = {place.image: path for path, place in places.items() if place.is_mask}
    rows = {path: [_row(path, place, masks)] for path, place in places.items() if not place.is_mask}
    return rows, places.keys() - rows.keys()


def _row(path: str, place: _Place, masks: Mapping[tuple[str, ...], str]) -> Row:
    row = dict.fromkeys(COLUMNS, "") | {"image": path}
    if place.kind == HEALTHY:
        return row | {"label": "normal"}
    return row | {"label": "anomalous", "kind": place.kind, "mask": masks.get(place.image, "")}


def _places(paths: Iterable[str]) -> Mapping[str, _Place]:
    """What each path says that says something; nothing without a folder train/good."""
    places = {path: place for path in paths if (place := _place(path))}
    trained = any(place.split == "train" and place.kind == HEALTHY and not place.is_mask for place in places.values())
    return places if trained else {}


def _place(path: str) -> _Place | None:
    *folders, name = path.split("/")
    words = [folder.lower() for folder in folders]
    at = next((i for i, word in enumerate(words) if word in SPLITS or word == TRUTH), len(words))
    if at + 1 >= len(words):
        return None
    kind, further = words[at + 1], words[at + 2 :]
    truth = words[at] == TRUTH
    is_mask = truth or bool(further and further[0] in MASKS)
    stem = posixpath.splitext(name)[0]
    if truth:
        stem = stem.removesuffix("_mask").removesuffix("_gt")
    below = further[1:] if further and further[0] in (*IMAGES, *MASKS) else further
    split = "test" if truth else SPLITS[words[at]]
    return _Place("/".join(folders[:at]), split, kind, "/".join([*below, stem]), is_mask)
