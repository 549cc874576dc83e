"""An ingest whose object storage throttles, cuts connections, or vanishes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
from faulty import faulty

from rayad import cli, storage
from rayad.datasets import folder, phantom

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SETTINGS = ["--sampling.patches", "20", "--shard-patches", "60"]


@contextmanager
def own_ray() -> Iterator[None]:
    """A cluster whose workers have the environment of this moment."""
    from rayad.on_ray.cluster import cluster
    from rayad.private import keep_private

    keep_private()
    with cluster():
        yield


@pytest.fixture
def images(s3) -> list[str]:
    """Healthy phantoms on S3, and the arguments that name them."""
    url = f"s3://{s3.bucket}/images"
    dataset = phantom.Dataset(patients=40, diseased=0.0, height=256, width=192)
    folder.export(dataset, dataset.exams(), url)
    return ["--dataset", "folder", "--source", url]


def files(url: str) -> dict[str, str]:
    """Names and hashes of what is at a place."""
    return {f.removeprefix(url): hashlib.sha256(storage.read_bytes(f)).hexdigest() for f in storage.listing(url)}


def test_a_network_that_throttles_and_cuts_changes_no_byte(s3, images, monkeypatch, capsys):
    with own_ray():
        assert cli.run(["ingest", *images, "--out", "s3://rayad/calm", *SETTINGS]) == 0, capsys.readouterr().err

    def fault(number: int, method: str, path: str) -> str:
        return "throttle" if number % 11 == 0 else "cut" if number % 13 == 0 and method == "GET" else "pass"

    with faulty(s3.endpoint, fault) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with own_ray():
            assert cli.run(["ingest", *images, "--out", "s3://rayad/rough", *SETTINGS]) == 0, capsys.readouterr().err
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    assert proxy.count("throttle") > 10
    assert proxy.count("cut") > 5
    assert files("s3://rayad/rough") == files("s3://rayad/calm")


def test_a_bucket_that_vanishes_is_one_sentence_and_the_same_command_goes_on(s3, images, monkeypatch, capsys):
    buckets = fsspec.filesystem("s3", endpoint_url=s3.endpoint)
    buckets.mkdir("vanishing")
    command = ["ingest", *images, "--out", "s3://vanishing/corpus", *SETTINGS]

    def vanish(number: int, method: str, path: str) -> str:
        if method == "PUT" and "/parts/shard-00001.json" in path and buckets.exists("vanishing"):
            buckets.rm("vanishing", recursive=True)  # not through the proxy, which waits
        return "pass"

    with faulty(s3.endpoint, vanish) as proxy:
        with monkeypatch.context() as through:
            through.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            through.setenv("AWS_ACCESS_KEY_ID", s3.writer[0])
            through.setenv("AWS_SECRET_ACCESS_KEY", s3.writer[1])
            with own_ray():
                code = cli.run(command)
        said = capsys.readouterr().err.strip().splitlines()
        assert code == 1
        assert said[-1].startswith("rayad: cannot write s3://vanishing/corpus"), said
        assert not [line for line in said if "Traceback" in line]
    with own_ray():
        buckets.mkdir("vanishing")
        assert cli.run(command) == 0, capsys.readouterr().err
        assert cli.run(["ingest", *images, "--out", "s3://rayad/whole", *SETTINGS]) == 0
    assert files("s3://vanishing/corpus") == files("s3://rayad/whole")
