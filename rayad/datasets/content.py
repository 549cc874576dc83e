"""What exams are made of: what was computed of others is not taken for theirs, and no two have one name."""

import hashlib
import re
from collections.abc import Sequence

from rayad import storage
from rayad.datasets.exam import Exam, Images, origin_of
from rayad.fingerprint import fingerprint

LONGEST = 120
"""Characters of an exam's id that are taken into the name of a file."""


def contents(dataset: Images, exams: Sequence[Exam]) -> dict[str, str]:
    """exam_id -> a hash of all that an exam's image and its truth are made of.

    Those are the files of image and masks (size and time of change, in object stores the ETag), the spacing, view and
    lesions that are known, and the settings of the data set but for those, in its `CHOOSES`, that say which images
    it has and change none.

    Raises:
        StorageError: the files cannot be looked at.
    """
    dataset = origin_of(dataset)
    settings = {
        name: str(value) for name, value in vars(dataset).items() if name not in getattr(dataset, "CHOOSES", ())
    }
    versions = storage.versions({url for exam in exams for url in _files(exam)})
    return {
        exam.exam_id: fingerprint(
            [type(dataset).__module__, settings, exam.described(), [versions[url] for url in _files(exam)]]
        )
        for exam in exams
    }


def file_name(exam_id: str) -> str:
    """What an exam's files are called, without an ending: its id, with a hash where that cannot be a file's name."""
    safe_name = re.sub(r"[^\w.\- ]", "_", exam_id)[:LONGEST]
    if safe_name == exam_id and safe_name.strip(" ."):
        return safe_name
    return f"{safe_name}-{hashlib.sha256(exam_id.encode(errors='surrogateescape')).hexdigest()[:8]}"


def _files(exam: Exam) -> list[str]:
    """The URLs of image and masks, and of the files that URL#PART, as of a segment, may be a part of."""
    urls = [exam.url, *(lesion.mask_url for lesion in exam.lesions), *(_files(exam.other) if exam.other else ())]
    containers = (url.rpartition("#")[0] for url in urls if "#" in url)
    return [url for url in (*urls, *containers) if url]
