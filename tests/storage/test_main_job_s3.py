"""The stages with every place on s3://, through the command line and a real S3 server."""

from collections.abc import Iterator

import pytest

from rayad import cli, storage
from rayad.datasets import folder, phantom
from rayad.private import keep_private
from tests.storage.conftest import S3, reach


@pytest.fixture(scope="module")
def own_ray(s3_server: S3) -> Iterator[S3]:
    """A cluster that was started with the server's keys in its environment, so its workers have them too."""
    keep_private()
    from rayad.on_ray.cluster import cluster

    with pytest.MonkeyPatch.context() as patch:
        reach(s3_server, patch)
        with cluster():
            yield s3_server


@pytest.mark.long
def test_ingest_train_density_and_heatmap_live_on_s3(own_ray, capsys):
    root = f"s3://{own_ray.bucket}/main"
    dataset = phantom.Dataset(patients=14, diseased=0.0, height=256, width=192)
    folder.export(dataset, dataset.exams(), f"{root}/images")
    source = ["--dataset", "folder", "--source", f"{root}/images"]
    stages = [
        ["ingest", *source, "--out", f"{root}/corpus", "--sampling.patches", "10"],
        [
            "train",
            "--corpus",
            f"{root}/corpus",
            "--out",
            f"{root}/cae",
            "--schedule.epochs",
            "1",
            "--settings",
            "width=4",
        ],
        [
            *("fit-density", "--detector", f"{root}/cae", "--corpus", f"{root}/corpus", "--out", f"{root}/cae-spn"),
            *("--em.epochs", "2", "--settings", "inputs=3", "replicas=3"),
        ],
        ["calibrate", "--detector", f"{root}/cae-spn", *source, "--scores", f"{root}/scores"],
        [
            *("heatmap", "--detector", f"{root}/cae-spn", "--images", storage.listing(f"{root}/images", (".png",))[0]),
            *("--out", f"{root}/maps", "--spacing-mm", "0.4"),
        ],
    ]
    for stage in stages:
        assert cli.run(stage) == 0, capsys.readouterr().err
    assert {url.rsplit(".", 1)[-1] for url in storage.listing(f"{root}/maps")} == {"jsonl", "npz", "png"}


def test_a_bucket_that_is_not_there_is_named(own_ray, capsys):
    code = cli.run(["ingest", "--dataset", "folder", "--source", "s3://nowhere/images", "--out", "s3://nowhere/corpus"])
    said = capsys.readouterr().err
    assert code == 1
    assert "s3://nowhere/images" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_a_wrong_key_is_one_sentence(own_ray, monkeypatch, capsys, wrong):
    url = f"s3://{own_ray.bucket}/main"
    monkeypatch.setenv(wrong, "wrong")
    for command in (
        ["ingest", "--dataset", "folder", "--source", f"{url}/images", "--out", f"{url}/denied"],
        ["train", "--corpus", f"{url}/corpus", "--out", f"{url}/denied"],
        ["check", "--detector", f"{url}/cae"],
    ):
        assert cli.run(command) == 1
        said = capsys.readouterr().err.strip()
        assert "access is denied" in said
        assert len(said.splitlines()) == 1
