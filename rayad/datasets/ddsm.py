"""DDSM: 2,620 cases of film mammograms, four views a case, outlines as chain codes.

Heath et al., "The Digital Database for Screening Mammography", Proc. 5th International Workshop on Digital
Mammography (2001), 212-218. A case is a folder with one ``.ics`` (facts of case and films), an image a view
(``C_0029_1.LEFT_CC.LJPEG``, or a conversion of that name to PNG, TIFF, PGM or JPEG) and an ``.OVERLAY`` for a view with
findings. Known defects of the set are `excluded` or leave a lesion without a place; they stop nothing.

A patient is a case. Eight names were given to two cases, of other patients, in two volumes (folders such as benign_05
and cancer_08, that hold the cases): volume and name are the patient there, and the name alone everywhere else.

Grey levels of LJPEG files and of 16-bit conversions become optical densities by the calibration of their scanner
(Heath et al. 2001; the letter of a case tells who scanned it), so that films of four scanners are comparable.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from rayad import storage
from rayad.arrays import Mask, Pixels
from rayad.datasets.exam import Exam, Excluded, Lesion, in_order, shortened
from rayad.errors import DatasetError
from rayad.imaging import ljpeg, raster
from rayad.imaging.raster import Raster

VIEWS = ("LEFT_CC", "LEFT_MLO", "RIGHT_CC", "RIGHT_MLO")
SUFFIXES = (".ljpeg", ".png", ".tif", ".tiff", ".pgm", ".jpg", ".jpeg")
"""Of images, the best first."""
DARKEST = 4.0
"""Optical density that is black."""
STEPS = np.array([(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)])
"""Row and column of a step of the chain code: 0 is up, then clockwise."""
KINDS = {"MASS": "mass", "CALCIFICATION": "calcification"}
TWICE = ("A-1500-1", "A-1511-1", "A-1512-1", "A-1632-1", "B-3470-1", "B-3497-1", "C-0412-1", "C-0478-1")
"""Names that two cases have: ages, sizes of films and volumes differ."""
LACKING_PX = 4
"""Rows or columns that an image may lack, or have too many: conversions to JPEG of normal cases lack up to 4."""
ALIGNED_PX = 1
"""The same where an outline has to lie on the image: at whichever edge the pixel is missing, it is off by no more."""
MALIGNANT = {"MALIGNANT": True, "BENIGN": False, "BENIGN_WITHOUT_CALLBACK": False}

_VIEW = re.compile(
    r"(?P<view>(LEFT|RIGHT)_(CC|MLO)) LINES (?P<lines>\d{1,6}) PIXELS_PER_LINE (?P<pixels>\d{1,6}) "
    r"BITS_PER_PIXEL (?P<bits>\d{1,2}) RESOLUTION (?P<resolution>\d+(\.\d+)?) (?P<overlay>(NON_)?OVERLAY)"
)
_VOLUME = re.compile(r"(normal|cancer|benign(_without_callback)?)_\d\d", re.IGNORECASE)
_CALIBRATIONS: dict[tuple[str, str], Callable[[np.ndarray], np.ndarray]] = {
    ("A", "DBA"): lambda grey: (np.log10(np.maximum(grey, 1)) - 4.80662) / -1.07553,
    ("A", "HOWTEK"): lambda grey: 3.789 - 0.00094568 * grey,
    ("B", "LUMISYS"): lambda grey: (grey - 4096.99) / -1009.01,
    ("C", "LUMISYS"): lambda grey: (grey - 4096.99) / -1009.01,
    ("D", "HOWTEK"): lambda grey: 3.96604 - 0.00099056 * grey,
}
"""First letter of a case (A: Massachusetts General Hospital, B and C: Wake Forest, D: ISMD) and scanner ->
optical density of a grey level."""


@dataclass(frozen=True)
class Film:
    """A line of an .ics file."""

    view: str
    shape: tuple[int, int]
    spacing_mm: float
    overlay: bool


@dataclass(frozen=True)
class Case:
    """An .ics file."""

    name: str
    """Such as C-0029-1."""
    density: str
    """Of the breast, 1 to 4, by ACR; "" where it is 0 or missing."""
    digitizer: str
    films: tuple[Film, ...]
    volume: str = ""
    """Such as benign_05; "" where it lies in no folder of such a name."""

    @property
    def stem(self) -> str:
        """What the names of its images and overlays begin with, such as C_0029_1."""
        return self.name.replace("-", "_")

    @property
    def prefix(self) -> str:
        """What its ids begin with: the volume where the name alone does not tell the case."""
        return f"{self.volume}." if self.volume and self.name in TWICE else ""

    @property
    def diseased(self) -> bool:
        """Whether something was found in one of the breasts, as the volume or a film says."""
        return any(film.overlay for film in self.films) or self.volume.startswith(("benign", "cancer"))


@dataclass(frozen=True)
class Abnormality:
    """An entry of an .OVERLAY file."""

    kind: str
    finding: str
    malignant: bool | None
    outline: np.ndarray | None
    """Rows and columns of the outer boundary, (points, 2); None where its code cannot be followed."""
    defect: str = ""
    """What is wrong with the entry."""


@dataclass(frozen=True)
class Dataset:
    """DDSM (film, CC and MLO, 0.042 to 0.05 mm): a folder or URL of cases, .ics with images beside them."""

    source: str = ""
    """Folder or URL that holds the cases, in any folders below it."""

    def exams(self) -> list[Exam]:
        """An exam a film; DatasetError where there is no case, or no image of one."""
        return self.listed()[0]

    def excluded(self) -> list[Excluded]:
        """Films without an image, cases that cannot be understood or told apart, outlines that cannot be followed."""
        return self.listed()[1]

    def pixels(self, exam: Exam) -> Pixels:
        """1 minus optical density / 4 where there are grey levels of the scanner, the stored intensities otherwise.

        Rows and columns that an image lacks are added at its lower and right edge.

        Raises:
            DatasetError: the image has not the size that the .ics file says.
        """
        case, film = self._film(exam)
        data = storage.read_bytes(exam.url)
        compressed = exam.url.lower().endswith(".ljpeg")
        image = Raster(ljpeg.decode(data, exam.url), 65535) if compressed else raster.decode(data, exam.url)
        shape = image.pixels.shape[:2]
        missing = np.subtract(film.shape, shape)
        outlined = any(lesion.located for lesion in exam.lesions)
        if np.abs(missing).max() > (ALIGNED_PX if outlined else LACKING_PX):
            unclear = "; at which edges they lack is not known, and its outlines depend on it" if outlined else ""
            raise DatasetError(f"{exam.url}: {film.shape} px expected, as its .ics file says, not {shape}{unclear}")
        if image.pixels.dtype == np.uint16 and image.pixels.ndim == 2:
            pixels = optical_density(image.pixels, case.name, case.digitizer)
        else:
            pixels = raster.grey(image, exam.url)
        padded = np.pad(pixels, [(0, max(0, count)) for count in missing], mode="edge")
        return padded[: film.shape[0], : film.shape[1]]

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """The boundary and what it encloses; DatasetError if it cannot be followed."""
        url, _, number = lesion.mask_url.partition("#")
        shape = self._film(exam)[1].shape
        abnormality = read_overlay(storage.read_bytes(url).decode("latin-1"), shape)[int(number)] if url else None
        if abnormality is None or abnormality.outline is None:
            raise DatasetError(f"{exam.exam_id}: the outline of this {lesion.kind} cannot be followed")
        return filled(abnormality.outline, shape)

    def _film(self, exam: Exam) -> tuple[Case, Film]:
        folder, name = posixpath.split(exam.url)
        stem, view = name.split(".")[:2]
        urls = [storage.join(folder, stem.replace("_", "-") + suffix) for suffix in (".ics", ".ICS")]
        url = urls[0] if storage.exists(urls[0]) else urls[1]
        case = read_ics(storage.read_bytes(url).decode("latin-1"), url)
        return case, next(film for film in case.films if film.view == view)

    def listed(self) -> tuple[list[Exam], list[Excluded]]:
        """Both, with every case read once."""
        files = {_key(url): url for url in storage.listing(self.source)}
        cases: dict[str, list[tuple[Case, str]]] = defaultdict(list)
        exams: list[Exam] = []
        excluded: list[Excluded] = []
        for key, url in sorted(files.items()):
            if key.endswith(".ics"):
                try:
                    case = _case(url)
                    cases[case.prefix + case.stem].append((case, url))
                except DatasetError as error:
                    excluded.append(Excluded(url, str(error)))
        for (case, url), *namesakes in cases.values():
            if namesakes:
                urls = [url, *(other_url for _, other_url in namesakes)]
                excluded += [Excluded(place, f"{case.name} is the name of {shortened(urls)}") for place in urls]
            else:
                exams += _exams(case, posixpath.dirname(url), files, excluded)
        if not exams:
            why = f"; {excluded[0].reason}" if excluded else ""
            raise DatasetError(f"{self.source}: no film of DDSM, wanted cases with .ics and {', '.join(SUFFIXES)}{why}")
        return in_order(exams), excluded


def optical_density(grey: np.ndarray, case: str, digitizer: str) -> Pixels:
    """1 minus optical density / 4, in [0, 1], so that dense tissue is bright.

    Args:
        grey: grey levels of the scanner, uint16.
        case: such as C-0029-1.
        digitizer: as the .ics file says it.
    """
    calibration = _CALIBRATIONS.get((case[:1], digitizer.split(" ")[0]))
    if calibration is None:
        scanners = ", ".join(f"{letter}-{scanner}" for letter, scanner in _CALIBRATIONS)
        raise DatasetError(f"{case}: no calibration of its scanner {digitizer!r}, DDSM has {scanners}")
    levels = calibration(np.arange(65536, dtype=np.float64))
    return np.clip(1 - levels / DARKEST, 0, 1).astype(np.float32)[grey]


def read_ics(text: str, url: str) -> Case:
    """The facts of a case; DatasetError if they are no .ics file."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    facts = {line.split(" ")[0]: line.partition(" ")[2] for line in lines if line}
    films = []
    for line in lines:
        if match := _VIEW.fullmatch(line):
            shape = int(match["lines"]), int(match["pixels"])
            spacing = float(match["resolution"]) / 1000
            films.append(Film(match["view"], shape, spacing, match["overlay"] == "OVERLAY"))
        elif line.startswith(VIEWS):
            raise DatasetError(f"{url}: {line[:100]!r} does not say LINES, PIXELS_PER_LINE ... of a film")
    if not facts.get("filename") or not films:
        raise DatasetError(f"{url}: an .ics file of DDSM expected, with filename and lines such as LEFT_CC LINES ...")
    if len({film.view for film in films}) < len(films) or not all(min(*f.shape, f.spacing_mm) > 0 for f in films):
        raise DatasetError(f"{url}: each view once, of a size and a resolution above 0, is expected")
    density = facts.get("DENSITY", "")
    density = density if density in ("1", "2", "3", "4") else ""
    return Case(facts["filename"], density, facts.get("DIGITIZER", ""), tuple(films), volume_of(url))


def volume_of(url: str) -> str:
    """The volume in whose folder a file lies, such as benign_05; "" where none of its folders has such a name."""
    folders = posixpath.dirname(storage.absolute(url)).split("/")
    return next((name.lower() for name in reversed(folders) if _VOLUME.fullmatch(name)), "")


def read_overlay(text: str, shape: tuple[int, int]) -> list[Abnormality]:
    """The entries of an .OVERLAY file, with what is wrong with them; one without a place for those that it lacks.

    Args:
        shape: rows and columns of the film, which an outline must not leave.
    """
    abnormalities = []
    for entry in re.split(r"^\s*ABNORMALITY\s+\d+\s*$", text, flags=re.MULTILINE)[1:]:
        types = [line.split() for line in re.findall(r"^\s*LESION_TYPE\s+(.+)$", entry, re.MULTILINE)]
        pathology = re.search(r"^\s*PATHOLOGY\s+(\S+)", entry, re.MULTILINE)
        boundaries = re.findall(r"^\s*BOUNDARY\s*\n([^#\n]*)", entry, re.MULTILINE)
        cores = len(re.findall(r"^\s*CORE\b", entry, re.MULTILINE))
        outlines = re.search(r"TOTAL_OUTLINES\s+(\d{1,6})", entry)
        outline, defect = follow(boundaries[0], shape) if boundaries else (None, "no BOUNDARY")
        if outlines and int(outlines[1]) != len(boundaries) + cores:
            defect = defect or f"TOTAL_OUTLINES {outlines[1]}, there are {len(boundaries) + cores}"
        kinds = [KINDS[words[0]] for words in types if words[0] in KINDS]
        finding = ", ".join(" ".join(words[1:]) for words in types)
        malignant = MALIGNANT.get(pathology[1]) if pathology else None
        abnormalities.append(Abnormality(kinds[0] if kinds else "other", finding, malignant, outline, defect))
    total = re.search(r"^\s*TOTAL_ABNORMALITIES\s+(\d{1,6})", text, re.MULTILINE)
    if not abnormalities or (total and int(total[1]) > len(abnormalities)):
        claim = total[1] if total else "some"
        lost = f"{claim} abnormalities expected, there are {len(abnormalities)}"
        abnormalities.append(Abnormality("other", "", None, None, lost))
    return abnormalities


def follow(code: str, shape: tuple[int, int]) -> tuple[np.ndarray | None, str]:
    """The points of a chain code, (points, 2) rows and columns counted from 0; and what is wrong with it.

    The code is column and row of the first point, counted from 1, and a direction a step.
    """
    numbers = code.split()
    if len(numbers) < 3 or not all(number.isdigit() and len(number) < 7 for number in numbers):
        return None, "a chain code of numbers expected"
    steps = np.array([int(number) for number in numbers[2:]])
    if steps.max() > 7:
        return None, f"direction {steps.max()} in a chain code of 0 to 7"
    start = np.array([int(numbers[1]) - 1, int(numbers[0]) - 1])
    points = start + np.concatenate([[(0, 0)], np.cumsum(STEPS[steps], axis=0)])
    if (points < 0).any() or (points >= shape).any():
        return None, "the chain code leaves the image"
    return points, ""


def filled(outline: np.ndarray, shape: tuple[int, int]) -> Mask:
    """The points of an outline and what they enclose."""
    low, high = outline.min(axis=0), outline.max(axis=0) + 1
    inside = np.zeros(high - low, dtype=bool)
    inside[tuple((outline - low).T)] = True
    mask = np.zeros(shape, dtype=bool)
    mask[low[0] : high[0], low[1] : high[1]] = ndimage.binary_fill_holes(inside)
    return mask


def _case(url: str) -> Case:
    """The case of an .ics file; DatasetError where it is called otherwise than the case, as its images are not then."""
    case = read_ics(storage.read_bytes(url).decode("latin-1"), url)
    if case.name != posixpath.splitext(posixpath.basename(url))[0]:
        raise DatasetError(f"{url}: the file says that its case is called {case.name!r}")
    return case


def _exams(case: Case, folder: str, files: dict[str, str], excluded: list[Excluded]) -> list[Exam]:
    """The films of a case; its defects go to what is excluded.

    Where something was found and the film that shows it is not there, of the others nobody knows whether they are
    healthy: the patient is not.
    """
    exams = []
    marked_views = [
        film.view for film in case.films if film.overlay or f"{_place(case, film, folder)}.overlay" in files
    ]
    for film in case.films:
        place = _place(case, film, folder)
        images = [files[place + suffix] for suffix in SUFFIXES if place + suffix in files]
        if not images:
            excluded.append(Excluded(place, "the image is not there"))
            continue
        lesions = _lesions(files.get(place + ".overlay", ""), film, excluded)
        side = film.view.split("_")[0]
        healthy = not any(view.startswith(side) for view in marked_views)
        exams.append(
            Exam(
                exam_id=f"{case.prefix}{case.stem}.{film.view}",
                patient_id=case.prefix + (case.name.rpartition("-")[0] or case.name),
                url=images[0],
                anomalous=True if lesions or film.overlay else (False if healthy else None),
                view=film.view.split("_")[1],
                laterality=side[0],
                density=case.density,
                spacing_mm=film.spacing_mm,
                lesions=lesions,
                scanner=case.digitizer,
            )
        )
    unseen = (case.diseased or marked_views) and not any(exam.anomalous for exam in exams)
    return [replace(exam, anomalous=None) for exam in exams] if unseen else exams


def _place(case: Case, film: Film, folder: str) -> str:
    """URL of a film's image and overlay, without the ending."""
    return storage.join(folder, f"{case.stem}.{film.view}")


def _lesions(url: str, film: Film, excluded: list[Excluded]) -> tuple[Lesion, ...]:
    if film.overlay != bool(url):
        claim = "OVERLAY" if film.overlay else "NON_OVERLAY"
        excluded.append(Excluded(url or film.view, f"the .ics file says {claim} of {film.view}"))
    if not url:
        return ()
    abnormalities = read_overlay(storage.read_bytes(url).decode("latin-1"), film.shape)
    excluded += [
        Excluded(f"{url}#{i}", abnormality.defect) for i, abnormality in enumerate(abnormalities) if abnormality.defect
    ]
    return tuple(
        Lesion(
            abnormality.kind,
            abnormality.finding,
            abnormality.malignant,
            mask_url=f"{url}#{i}" if abnormality.outline is not None else "",
        )
        for i, abnormality in enumerate(abnormalities)
    )


def _key(url: str) -> str:
    """The URL with its ending in small letters: copies of the set have them in either."""
    stem, suffix = posixpath.splitext(url)
    return stem + suffix.lower()
