"""rayad.serving.fetch on a real S3 server: a URL that is allowed is the object of that name and no other."""

import asyncio

import pytest

from rayad import storage
from rayad.errors import StorageError
from rayad.serving.access import Limits
from rayad.serving.fetch import AllowList, fetch
from rayad.serving.problems import Problem, of


def got(url: str, prefix: str) -> bytes:
    return asyncio.run(fetch(url, AllowList((prefix,)), Limits(max_body_mb=1)))


@pytest.mark.parametrize("name", ["a.png", "a b.png", "100%.png", "a%20b", "Ünï (1)+[2]*.dcm", "sub/a=1&b;c.png"])
def test_an_object_is_opened_by_its_own_name(s3, name: str) -> None:
    prefix = f"s3://{s3.bucket}/allowed/"
    storage.write_bytes(prefix + name, name.encode())
    assert got(prefix + name, prefix) == name.encode()


def test_the_rest_of_the_bucket_is_closed(s3) -> None:
    prefix = f"s3://{s3.bucket}/closed/in"
    storage.write_bytes(f"s3://{s3.bucket}/closed/secret", b"secret")
    storage.write_bytes(f"s3://{s3.bucket}/closed/in2/secret", b"secret")
    for name in ("secret", "in2/secret", "in/../secret", "in/%2e%2e/secret", "in/a::s3://rayad/closed/secret"):
        with pytest.raises(Problem):
            got(f"s3://{s3.bucket}/closed/{name}", prefix)


def test_an_object_has_a_size_and_must_be_there(s3) -> None:
    prefix = f"s3://{s3.bucket}/sizes/"
    storage.write_bytes(f"{prefix}large", bytes(1_000_001))
    with pytest.raises(Problem) as large:
        got(f"{prefix}large", prefix)
    with pytest.raises(StorageError) as none:
        got(f"{prefix}none", prefix)
    assert (large.value.status, of(none.value).status) == (413, 404)


def test_a_key_that_may_not_read_is_a_403(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"s3://{s3.bucket}/denied", b"")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.reader[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader[1])
    with pytest.raises(StorageError) as denied:
        got(f"s3://{s3.bucket}/denied", f"s3://{s3.bucket}/")
    assert of(denied.value).status == 403
