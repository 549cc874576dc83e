"""Images that were listed before: ``exams.parquet``, a row an image, which ingest, inspect and runs write.

Whoever reads it asks for no header, no table of labels and no list of files again, however many images there are; the
pixels come from the data set that was listed, which the file names. What changed since then is not in it: ingest lists
again.
"""

import io
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayad import bounded, catalog, storage
from rayad.arrays import Image, Mask
from rayad.datasets.exam import Exam, Excluded, Images, Lesion, listed, name_of, origin_of
from rayad.datasets.splits import Division, assign, division_of
from rayad.errors import FormatError
from rayad.imaging.plausibility import Doubt

NAME = "exams.parquet"
SCHEMA = 1
LESION = pa.struct(
    [
        ("kind", pa.string()),
        ("finding", pa.string()),
        ("malignant", pa.bool_()),
        ("circle", pa.list_(pa.float64())),
        ("mask_url", pa.string()),
        ("outline", pa.list_(pa.list_(pa.float64()))),
    ]
)
COLUMNS = pa.schema(
    [
        ("exam_id", pa.string()),
        ("patient_id", pa.string()),
        ("url", pa.string()),
        ("anomalous", pa.bool_()),
        ("view", pa.string()),
        ("laterality", pa.string()),
        ("density", pa.string()),
        ("spacing_mm", pa.float64()),
        ("lesions", pa.list_(LESION)),
        ("scanner", pa.string()),
        ("doubts", pa.list_(pa.struct([("kind", pa.string()), ("sentence", pa.string())]))),
        ("wall", pa.string()),
        ("part", pa.string()),
        ("split", pa.string()),
        ("excluded", pa.string()),
    ]
)
"""Fields of `Exam`, and why a file was left out: such a row has a URL and the reason alone."""


@dataclass(frozen=True)
class Dataset:
    """See the module."""

    source: str = ""
    """The list, exams.parquet, or the folder of a corpus, page or run in which it lies."""

    @cached_property
    def listed_from(self) -> Images:
        """The data set that was listed; workers get it with this one and read no list."""
        _, description = _read(self._url)
        if not description["dataset"] or description["dataset"] == Dataset.__module__.rpartition(".")[2]:
            raise FormatError(f"{self._url}: the images were listed by a class that is none of rayad's data sets")
        return catalog.configure("datasets", description["dataset"], tuple(description["settings"]))

    @cached_property
    def division(self) -> Division:
        """How the patients were divided."""
        return catalog.restored(Division, _read(self._url)[1].get("shares", {}))

    def exams(self) -> list[Exam]:
        return self.listed()[0]

    def listed(self) -> tuple[list[Exam], list[Excluded]]:
        """The exams, sorted, with the splits of the list, and the files that are left out."""
        rows = _read(self._url)[0].to_pylist()
        exams = [_exam(row) for row in rows if not row["excluded"]]
        return exams, [Excluded(row["url"], row["excluded"]) for row in rows if row["excluded"]]

    def pixels(self, exam: Exam) -> Image:
        return self.listed_from.pixels(exam)

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        return self.listed_from.lesion_mask(exam, lesion)

    @property
    def _url(self) -> str:
        return self.source if posixpath.basename(self.source) == NAME else storage.join(self.source, NAME)


def write(
    dataset: Images, exams: Sequence[Exam], splits: Mapping[str, str], left_out: Sequence[Excluded], url: str
) -> None:
    """The list of a data set's images into a folder; one that is there and says the same is not touched."""
    origin = origin_of(dataset)
    name = name_of(origin)
    description = {"schema": SCHEMA, "dataset": name, "settings": catalog.settings_of(origin) if name else ()}
    description |= {"shares": asdict(division_of(dataset))}
    rows = [asdict(exam) | {"split": splits[exam.exam_id], "excluded": ""} for exam in exams]
    rows += [{"url": exclusion.url, "excluded": exclusion.reason} for exclusion in left_out]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, COLUMNS.with_metadata({"rayad": json.dumps(description)})), buffer)
    list_url, data = storage.join(url, NAME), buffer.getvalue()
    if not storage.exists(list_url) or storage.read_bytes(list_url) != data:
        storage.write_bytes(list_url, data)


def listed_once(dataset: Images, url: str) -> Dataset:
    """The data set's images, listed now, with the list in a folder."""
    exams, left_out = listed(dataset)
    write(dataset, exams, assign(exams), left_out, url)
    return Dataset(url)


def _read(url: str) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a list, and what it says of itself: schema, name and settings of the data set."""
    if not storage.exists(url):
        raise FormatError(f"{url}: no list of images here; rayad ingest, inspect and run write it")
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(url)))
    except pa.ArrowException as error:
        raise FormatError(f"{url}: no parquet file: {error}") from None
    description = bounded.parse_json((table.schema.metadata or {}).get(b"rayad", b"{}"), url)
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        raise FormatError(f"{url}: a list of images of schema {SCHEMA} is wanted; ingest or inspect the images again")
    return table, description


def _exam(row: dict) -> Exam:
    lesions = tuple(
        Lesion(
            **lesion
            | {
                "circle": tuple(lesion["circle"]) if lesion["circle"] else None,
                "outline": tuple(map(tuple, lesion["outline"])),
            }
        )
        for lesion in row["lesions"]
    )
    doubts = tuple(Doubt(**doubt) for doubt in row["doubts"])
    facts = {name: value for name, value in row.items() if name != "excluded"}
    return Exam(**facts | {"lesions": lesions, "doubts": doubts})
