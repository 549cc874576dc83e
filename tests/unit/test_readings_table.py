"""readings.csv: what a reader said of findings, from many programs, and mistakes in it."""

import pytest

from rayad.datasets.exam import Exam
from rayad.datasets.readings import read
from rayad.errors import DatasetError


def exam(exam_id: str, url: str = "") -> Exam:
    return Exam(exam_id, f"patient of {exam_id}", url or f"/images/{exam_id}.pgm", None, "MLO", "L", "", 0.2)


EXAMS = [exam("mdb001"), exam("mdb002"), exam("a/one"), exam("b/one"), exam("b/two", "s3://x/b/two.png")]


def table(tmp_path, text: str | bytes) -> str:
    url = tmp_path / "readings.csv"
    url.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(url)


def test_findings_go_to_their_images_by_name_or_unique_base_name(tmp_path):
    rows = [
        "image,row,col,radius,reading,detector,sha256",
        "mdb001,10,20.5,5,accepted,cae-spn,00",
        "mdb001.pgm,30,40,6,REJECTED,,",
        "a/one,1,2,3,accepted,,",
        "elsewhere/two.png,1,2,3,rejected,,",
        "mdb001,10,20.5,5,accepted,other,11",
    ]
    found = read(table(tmp_path, "\n".join(rows)), EXAMS)
    assert found.keys() == {"mdb001", "a/one", "b/two"}
    assert [lesion.circle for lesion in found["mdb001"].accepted] == [(10, 20.5, 5)]  # the same finding twice is one
    assert [lesion.circle for lesion in found["mdb001"].rejected] == [(30, 40, 6)]
    assert [lesion.circle for lesion in found["b/two"].rejected] == [(1, 2, 3)]


def test_other_programs_separate_and_count_otherwise(tmp_path):
    text = "Image;Row;Col;Radius;Reading\r\nmdb002;10,5;20;5;Accepted\r\n"
    for encoded in (text.encode("utf-16"), text.encode("cp1252"), text.replace(";", "\t").encode("utf-8-sig")):
        assert read(table(tmp_path, encoded), EXAMS)["mdb002"].accepted[0].circle == (10.5, 20, 5)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("image,row,col,reading\nmdb001,1,2,accepted", "radius is not there"),
        ("image,row,col,radius,reading\n", "has no row"),
        ("image,row,col,radius,reading\nmdb009,1,2,3,accepted", "row 1: the data set has no image 'mdb009'"),
        ("image,row,col,radius,reading\none,1,2,3,accepted", "row 1: 'one' may be a/one, b/one"),
        ("image,row,col,radius,reading\nmdb001,x,2,3,accepted", "row 1: row 'x' is not a number"),
        ("image,row,col,radius,reading\nmdb001,1,1e9,3,accepted", "row 1: col '1e9' is not a number of px"),
        ("image,row,col,radius,reading\nmdb001,1,2,0,accepted", "row 1: radius 0 is not above 0"),
        ("image,row,col,radius,reading\nmdb001,1,2,3,maybe", "row 1: reading 'maybe' is not accepted or rejected"),
        ("image,row,col,radius,reading\nmdb001,1,2,3", "row 1 needs 5 cells"),
        (
            "image,row,col,radius,reading\nmdb001,1,2,3,accepted\nmdb001,1,2,3,rejected",
            "row 2: .*accepted and rejected",
        ),
        ("image,row,col,radius,reading,detectr\nmdb001,1,2,3,accepted,x", "'detectr'; is detector meant"),
    ],
)
def test_a_mistake_is_said_with_file_and_row(tmp_path, rows, sentence):
    with pytest.raises(DatasetError, match=rf"readings\.csv.*{sentence}"):
        read(table(tmp_path, rows), EXAMS)
