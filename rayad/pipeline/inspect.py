"""Look at a data set before one learns from it: every image is read on the cluster, and a page says what was found."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayad.datasets.exam import Exam, Excluded, Images, listed, shortened, source_of
from rayad.datasets.exam import reasons as by_reason
from rayad.datasets.exams import write as write_list
from rayad.datasets.splits import assign
from rayad.errors import reason
from rayad.evaluation import inspection
from rayad.imaging import likeness
from rayad.imaging.breast import chest_wall
from rayad.imaging.picture import Preprocessing
from rayad.patches.corpus import Corpus
from rayad.patches.sample import Sampling, choose
from rayad.pool import Pool

ALWAYS = ("view", "side")
"""Facts that are told though none is known."""
BINS = 64
"""Of a histogram of intensities."""


@dataclass(frozen=True)
class Look:
    """What was seen of an image."""

    exam_id: str
    hash: int = 0
    ranks: np.ndarray | None = None
    tissue: float = 0.0
    """Share of the image."""
    histogram: tuple[int, ...] = ()
    """Pixels of the tissue, in bins of [0, 1]."""
    failure: str = ""
    doubts: tuple[str, ...] = ()
    """What may be wrong with it."""
    wall: str = ""
    """At which edge the picture has the chest wall, left or right; empty: unclear, or nothing of a breast."""


def inspect(
    pool: Pool,
    name: str,
    source: str,
    dataset: Images,
    preprocessing: Preprocessing,
    url: str,
    sheet: int = 48,
    corpus: str = "",
) -> tuple[str, list[str]]:
    """Write the page of a data set, and the list of its images.

    Args:
        sheet: how many images the contact sheet shows.
        corpus: URL of a corpus made from it, which is checked too.

    Returns:
        The URL of the page, and what forbids to learn from the data.
    """
    exams, left_out = listed(dataset)
    splits = assign(exams)
    write_list(dataset, exams, splits, left_out, url)
    looks = list(pool.map(look_at, exams, "images", (dataset, preprocessing), _unseen))
    readable = [look for look in looks if not look.failure]
    twins = _twins(exams, splits, looks)
    problems = [_across(twins)] * any(twin["across"] for twin in twins)
    corpus_sentence, patch_px = "", Sampling().patch_px
    if corpus:
        opened = Corpus.open(corpus)
        patch_px = opened.patch_px
        corpus_sentence = (
            f"The corpus {corpus} holds {opened.manifest['patches']:,} patches of {opened.manifest['images']:,} images."
        )
        problems += opened.problems()
    failures = [Excluded(exam.url, look.failure) for exam, look in zip(exams, looks, strict=True) if look.failure]
    doubtful = [Excluded(e.url, doubt) for e, look in zip(exams, looks, strict=True) for doubt in look.doubts]
    summary: dict[str, Any] = {
        "dataset": name,
        "source": source,
        "counts": _counts(exams, splits),
        "facts": _facts(exams) | _walls(exams, looks),
        "excluded": by_reason(left_out),
        "failures": by_reason(failures),
        "doubtful": by_reason(doubtful),
        "looked_at": len(looks),
        "twins": twins,
        "intensities": _intensities(exams, looks),
        "corpus": corpus_sentence,
        "problems": problems,
    }
    median = float(np.median([look.tissue for look in readable])) if readable else 0.0
    unusual = sorted(readable, key=lambda look: -abs(np.log((look.tissue + 1e-3) / (median + 1e-3))))
    most_unusual, rest = unusual[: sheet // 2], unusual[sheet // 2 :]
    sheet_looks = (
        most_unusual + rest[:: max(1, len(rest) // max(1, sheet - len(most_unusual)))][: sheet - len(most_unusual)]
    )
    by_id = {exam.exam_id: exam for exam in exams}
    chosen = [by_id[look.exam_id] for look in sheet_looks]
    pictures = pool.map(draw, chosen, "pictures", (dataset, preprocessing, patch_px))
    page = inspection.build(summary, [(e.exam_id, png) for e, png in zip(chosen, pictures, strict=True)], url)
    return page, problems


def look_at(dataset: Images, preprocessing: Preprocessing, exam: Exam) -> Look:
    """Read one image as ingest does; no picture, so that the driver can hold what was seen of a million images."""
    try:
        prepared = preprocessing.prepare(source_of(dataset, exam))
    except Exception as error:  # noqa: BLE001, whatever it is, the other images are looked at
        return Look(exam.exam_id, failure=reason(error))
    counts, _ = np.histogram(prepared.stored[prepared.tissue], BINS, (0, 1))
    return Look(
        exam.exam_id,
        likeness.difference_hash(prepared.stored, prepared.body),
        likeness.ranks(prepared.stored, prepared.body),
        float(prepared.tissue.mean()),
        tuple(counts.tolist()),
        doubts=tuple(f"{doubt.kind}: {doubt.sentence}" for doubt in prepared.doubts),
        wall=chest_wall(prepared.body) if prepared.pixels.ndim == 2 else "",
    )


def _unseen(why: str, exam: Exam) -> Look:
    """Of an image whose process ended."""
    return Look(exam.exam_id, failure=f"{exam.url}: {why}")


def draw(dataset: Images, preprocessing: Preprocessing, patch_px: int, exam: Exam) -> bytes:
    """One image with its masks and twelve patches, as ingest would take them."""
    prepared = preprocessing.prepare(source_of(dataset, exam))
    rows, columns, _ = choose(prepared.body, prepared.tissue, Sampling(12), exam.exam_id)
    return inspection.picture(prepared, rows, columns, patch_px)


def _twins(exams: Sequence[Exam], splits: dict[str, str], looks: Sequence[Look]) -> list[dict[str, Any]]:
    """Images of different patients that look the same."""
    readable = [(exam, look) for exam, look in zip(exams, looks, strict=True) if not look.failure]
    twins = []
    for i, j, bits in likeness.pairs([look.hash for _, look in readable]):
        (a, look_a), (b, look_b) = readable[i], readable[j]
        if look_a.ranks is None or look_b.ranks is None or a.patient_id == b.patient_id:
            continue
        rho = float(look_a.ranks @ look_b.ranks)
        if rho > likeness.ALIKE:
            twin_splits = splits[a.exam_id], splits[b.exam_id]
            row = {"a": a.exam_id, "b": b.exam_id, "bits": bits, "rho": rho, "splits": " and ".join(twin_splits)}
            twins.append(row | {"across": twin_splits[0] != twin_splits[1]})
    return twins


def _across(twins: Sequence[dict[str, Any]]) -> str:
    pairs = [f"{twin['a']} and {twin['b']}" for twin in twins if twin["across"]]
    return f"{len(pairs)} pairs of images look the same and stand in two splits: {shortened(pairs)}."


def _counts(exams: Sequence[Exam], splits: dict[str, str]) -> dict[str, dict[str, int]]:
    exams_of_split: dict[str, list[Exam]] = defaultdict(list)
    for exam in exams:
        exams_of_split[splits[exam.exam_id]].append(exam)
    return {
        split: {
            "images": len(split_exams),
            "patients": len({exam.patient_id for exam in split_exams}),
            "anomalous": sum(exam.anomalous is True for exam in split_exams),
        }
        for split, split_exams in sorted(exams_of_split.items())
    }


def _facts(exams: Sequence[Exam]) -> dict[str, dict[str, int]]:
    """Fact -> value -> how many; what is known of no image too, where detectors use it or splits need it."""
    columns = {
        "view": [exam.view for exam in exams],
        "side": [exam.laterality for exam in exams],
        "density": [exam.density for exam in exams],
        "spacing, mm": [f"{exam.spacing_mm:g}" for exam in exams],
        "scanner": [exam.scanner for exam in exams],
        "lesions": [lesion.kind for exam in exams for lesion in exam.lesions],
    }
    return {
        name: dict(Counter(values).most_common()) for name, values in columns.items() if any(values) or name in ALWAYS
    }


def _walls(exams: Sequence[Exam], looks: Sequence[Look]) -> dict[str, dict[str, int]]:
    """How often which side of the body has its chest wall at which edge: what is rare may be of the other side."""
    pairs = [
        f"{exam.laterality}, chest wall {look.wall}"
        for exam, look in zip(exams, looks, strict=True)
        if exam.laterality and look.wall
    ]
    return {"side and picture": dict(Counter(pairs).most_common())} if pairs else {}


def _intensities(exams: Sequence[Exam], looks: Sequence[Look]) -> dict[str, list[float]]:
    """Scanner -> share of its tissue in each bin."""
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(BINS))
    for exam, look in zip(exams, looks, strict=True):
        if not look.failure:
            sums[exam.scanner] += look.histogram
    return {name: (histogram / max(1, histogram.sum())).tolist() for name, histogram in sorted(sums.items())}
