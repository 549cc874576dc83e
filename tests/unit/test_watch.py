"""What the loop over an archive reads and how long it waits; the loop itself is in tests/pacs."""

import random

import pytest
from urllib3.filepost import encode_multipart_formdata

from rayad.errors import FormatError
from rayad.serving import client, watch

FILES = [b"", b"\r\n", b"DICM\r\n--\r\n\r\nand more\r\n", bytes(range(256)) * 40]


def test_files_come_out_of_a_body_as_they_went_in():
    body, kind = encode_multipart_formdata([(str(n), ("a", file, "application/dicom")) for n, file in enumerate(FILES)])
    related = kind.replace("form-data", 'related; type="application/dicom"')
    assert client.parts(body, related) == FILES
    boundary = kind.rpartition("=")[2]
    assert client.parts(b"a preamble\r\n" + body, related.replace(boundary, f'"{boundary}"')) == FILES
    assert client.parts(FILES[3], "application/dicom") == [FILES[3]]


def test_a_body_that_ends_early_is_no_answer():
    body, kind = encode_multipart_formdata([("a", ("a", FILES[3], "application/dicom"))])
    related = kind.replace("form-data", "related")
    with pytest.raises(FormatError, match="without its end"):
        client.parts(body[:-100], related)
    for other in ("application/json", "multipart/related", ""):
        with pytest.raises(FormatError, match="multipart/related expected"):
            client.parts(body, other)


def test_waits_double_up_to_a_limit_and_are_never_nothing():
    random.seed(0)
    for failures, most in ((1, 1), (2, 2), (5, 16), (6, 32), (7, 60), (10_000, 60)):
        waits = [watch._backoff(failures, watch.BACKOFF_S) for _ in range(200)]
        assert most / 2 <= min(waits) < max(waits) <= most
