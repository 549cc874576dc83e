"""Folders that say what is in their images, as MVTec AD and BMAD have them.

    train/good/NAME                                healthy
    test/good/NAME, test/KIND/NAME                 healthy, or with an anomaly of this kind
    ground_truth/KIND/NAME_mask                    where it is (MVTec AD)
    test/KIND/img/NAME, test/KIND/label/NAME       image and mask (BMAD); so too below train and valid

All may lie below further folders, one a category. Images below test are test images, those below train and valid are
learned from (rayad/datasets/splits.py).
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rayad.datasets.labels import COLUMNS, PART, Row

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
    row = dict.fromkeys(COLUMNS, "") | {"image": path, "split": place.split}
    if place.kind == HEALTHY:
        return row | {"label": "normal"}
    return row | {"label": "anomalous", "kind": place.kind, "mask": masks.get(place.image, "")}


def _places(paths: Iterable[str]) -> Mapping[str, _Place]:
    """What each path says that says something; nothing without a folder train/good."""
    places = {path: place for path in paths if (place := _place(path))}
    has_training = any(
        place.split == "train" and place.kind == HEALTHY and not place.is_mask for place in places.values()
    )
    return places if has_training else {}


def _place(path: str) -> _Place | None:
    *folders, name = path.split("/")
    lower_folders = [folder.lower() for folder in folders]
    split_index = next(
        (i for i, word in enumerate(lower_folders) if PART.get(word) or word == TRUTH), len(lower_folders)
    )
    if split_index + 1 >= len(lower_folders):
        return None
    kind, subfolders = lower_folders[split_index + 1], lower_folders[split_index + 2 :]
    is_truth = lower_folders[split_index] == TRUTH
    is_mask = is_truth or bool(subfolders and subfolders[0] in MASKS)
    stem = posixpath.splitext(name)[0]
    if is_truth:
        stem = stem.removesuffix("_mask").removesuffix("_gt")
    stem_folders = subfolders[1:] if subfolders and subfolders[0] in (*IMAGES, *MASKS) else subfolders
    split = "test" if is_truth else PART[lower_folders[split_index]]
    return _Place("/".join(folders[:split_index]), split, kind, "/".join([*stem_folders, stem]), is_mask)
