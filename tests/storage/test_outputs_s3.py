"""Places in a bucket: one command at a time, and what a killed one held is free again."""

import os
import subprocess
import sys

import pytest

from rayad import storage
from rayad.errors import OptionError
from rayad.outputs import MARK, claimed

HOLDS = """
import sys
from rayad import storage
from rayad.outputs import claimed
with claimed(sys.argv[1], "a corpus"):
    storage.write_bytes(sys.argv[1] + "/plan.json", b"{}")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_command_holds_its_place_until_it_ends_or_is_killed(s3):
    url = f"s3://{s3.bucket}/outputs/{os.getpid()}"
    command = [sys.executable, "-c", HOLDS, url]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    try:
        with pytest.raises(OptionError, match=f"process {holder.pid} on"), claimed(url, "a corpus"):
            pytest.fail("it was let in")
    finally:
        holder.kill()
        holder.communicate()
    with claimed(url, "a corpus"):
        pass
    assert storage.read_json(f"{url}/{MARK}") == {"holds": "a corpus"}
    with pytest.raises(OptionError, match="holds a corpus; name a place of its own"), claimed(url, "a detector"):
        pytest.fail("it was let in")


def test_files_of_others_in_a_bucket_are_left_alone(s3):
    url = f"s3://{s3.bucket}/theirs/{os.getpid()}"
    storage.write_bytes(f"{url}/notes.txt", b"mine")
    with pytest.raises(OptionError, match="holds files that are not a corpus of rayad"), claimed(url, "a corpus"):
        pytest.fail("it was let in")
    assert storage.listing(url) == [f"{url}/notes.txt"]


def test_versions_of_objects_are_their_etags(s3):
    url = f"s3://{s3.bucket}/versions/{os.getpid()}/a.png"
    storage.write_bytes(url, b"1")
    before = storage.versions([url, f"{url}.none"])
    storage.write_bytes(url, b"2")
    after = storage.versions([url])
    assert before[url] != after[url]
    assert before[f"{url}.none"] == ""
    assert storage.head(url, 10) == b"2"
