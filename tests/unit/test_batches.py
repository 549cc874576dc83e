"""What is written of batches lets a new service go on with them, and nothing in a folder of results can change that."""

import os

import pytest

from rayad import storage
from rayad.errors import StorageError
from rayad.heatmaps import answers
from rayad.heatmaps.answers import BatchRequest, DetectorName, Failure, Result
from rayad.serving.batches import BatchFiles, KeptBatch, Places, new, own_file, results_there


@pytest.fixture
def folder(tmp_path) -> str:
    for name in ("state", "out", "in"):
        (tmp_path / name).mkdir()
    return f"file://{tmp_path}"


@pytest.fixture
def files(folder) -> BatchFiles:
    return BatchFiles(Places(f"{folder}/state", (f"{folder}/in/",), (f"{folder}/out/",)))


@pytest.fixture
def batch(folder) -> KeptBatch:
    request = BatchRequest(prefix=f"{folder}/in/", out=f"{folder}/out/one")
    kept = new(request, DetectorName.model_validate(answers.DETECTOR), f"{folder}/detector")
    kept.add(Failure(image="a", reason="it is empty"))
    kept.add(Result.model_validate(answers.VERDICT | {"image": "b", "name": "b"}))
    return kept


def test_a_new_service_knows_the_batch_as_it_was(files, batch):
    files.write(batch, begun=True)
    (known,) = files.known()
    assert (known.status, known.request, known.url) == (batch.status, batch.request, batch.url)
    assert known.resumed
    assert files.read(batch.status) == batch.status


def test_a_folder_of_results_says_how_far_a_batch_is_and_nothing_else(files, batch, folder):
    files.write(batch, begun=True)
    place = own_file(batch.status.out)
    elsewhere = {"out": "/etc", "detector": answers.DETECTOR | {"name": "other"}, "state": "done"}
    storage.write_json(place, storage.read_json(place) | elsewhere)
    (known,) = files.known()
    assert (known.status.out, known.status.detector) == (batch.status.out, batch.status.detector)
    assert known.status.state == "done"
    storage.write_json(place, storage.read_json(place) | {"id": "f" * 32})  # another batch is there by now
    assert list(files.known()) == []
    storage.write_bytes(place, b"{")
    assert list(files.known()) == []


def test_images_that_changed_since_the_batch_began_are_named(files, batch, folder):
    images = [f"{folder}/in/{name}.png" for name in ("a", "b")]
    for image in images:
        storage.write_bytes(image, b"pixels")
    web = "https://pacs/c.png"
    assert files.changed(batch, [*images, web]) == set()
    os.utime(images[1].removeprefix("file://"), (1, 1))
    assert files.changed(batch, [*images, web]) == {images[1]}
    assert files.changed(batch, [*images, web]) == set()
    files.forget_images(batch)
    os.utime(images[1].removeprefix("file://"), (2, 2))
    assert files.changed(batch, images) == set()


def test_results_that_nobody_wrote_down_are_those_of_this_batch(batch, monkeypatch):
    status = batch.status.model_copy(update={"asked": batch.status.asked.model_copy(update={"results": ("json",)})})
    images = [(f"file:///in/{name}.png", name) for name in ("mine", "other", "old", "broken", "lacking")]
    assert list(results_there(status, images)) == []
    others = answers.DETECTOR | {"sha256": "0" * 64}
    for name, detector in {"mine": answers.DETECTOR, "other": others, "old": answers.DETECTOR}.items():
        storage.write_json(storage.join(status.out, f"{name}.json"), answers.ANSWER | {"detector": detector})
    storage.write_bytes(storage.join(status.out, "broken.json"), b"{")
    os.utime(storage.join(status.out, "old.json").removeprefix("file://"), (1, 1))
    modified, asked = storage.modified, []
    monkeypatch.setattr(storage, "modified", lambda url: asked.append(url) or modified(url))
    assert [(row.image, row.name) for row in results_there(status, images)] == [images[0]]
    assert storage.join(status.out, "lacking.json") not in asked
    assert (
        list(results_there(batch.status.model_copy(update={"asked": status.asked, "out": "file:///nowhere"}), images))
        == []
    )


def test_without_a_state_folder_nothing_is_remembered(batch, folder):
    files = BatchFiles(Places("", (), (f"{folder}/out/",)))
    files.write(batch, begun=True)
    assert files.read(batch.status) == batch.status
    assert list(files.known()) == []
    assert files.changed(batch, [f"{folder}/in/a.png"]) == set()
    files.forget_images(batch)


def test_what_cannot_be_written_is_told(files, batch, monkeypatch):
    def away(*_: object, **__: object) -> None:
        raise StorageError("the store is away")

    monkeypatch.setattr(storage, "write_json", away)
    assert not files.written(batch)
    with pytest.raises(StorageError, match="away"):
        files.write(batch)
