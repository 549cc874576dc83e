"""rayad.storage on a local folder and in memory; tests/storage has the same on a real S3 server."""

import errno
import os
import resource
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from rayad import storage
from rayad.errors import FormatError, StorageError


@pytest.fixture(params=["folder", "file://", "memory://"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    if request.param == "memory://":
        return f"memory://{uuid.uuid4().hex}"
    return str(tmp_path) if request.param == "folder" else f"file://{tmp_path}"


@contextmanager
def tiny_files() -> Iterator[None]:
    """The system refuses files of more than 1 kB in this process, as a full disk would; pytest's log among them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("s3://bucket", "a", "b.npy"), "s3://bucket/a/b.npy"),
        (("s3://bucket/", "/a/", "b"), "s3://bucket/a/b"),
        (("memory://", "x"), "memory://x"),
        (("/data/", "a b.png"), "/data/a b.png"),
        (("/", "a"), "/a"),
        (("relative", "a/b"), "relative/a/b"),
        (("", "a"), "a"),
    ],
)
def test_join_keeps_the_scheme(parts: tuple[str, ...], expected: str) -> None:
    assert storage.join(*parts) == expected


def test_what_was_written_is_read_again(root: str) -> None:
    url = storage.join(root, "a", "b", "c.bin")
    assert not storage.exists(url)
    storage.write_bytes(url, b"first")
    storage.write_bytes(url, b"second")
    assert storage.exists(url)
    assert storage.exists(storage.join(root, "a"))
    assert storage.read_bytes(url) == b"second"


def test_a_relative_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("a.bin", b"1")
    storage.write_bytes("folder/b.bin", b"2")
    assert storage.listing(".") == ["./a.bin", "./folder/b.bin"]
    assert storage.listing("folder") == ["folder/b.bin"]


def test_reading_can_seek(root: str) -> None:
    url = storage.join(root, "x.npy")
    with storage.writing(url) as file:
        np.save(file, np.arange(5))
    with storage.reading(url) as file:
        file.seek(-8, os.SEEK_END)
        assert file.read() == np.int64(4).tobytes()


def test_a_listing_is_sorted_complete_and_opens(root: str) -> None:
    for name in ["b.png", "a.txt", "deep/er/c.PNG", ".hidden.png", ".git/d.png"]:
        storage.write_bytes(storage.join(root, name), name.encode())
    below = [url.removeprefix(root + "/") for url in storage.listing(root)]
    assert below == ["a.txt", "b.png", "deep/er/c.PNG"]
    images = storage.listing(root, (".png",))
    assert [storage.read_bytes(url) for url in images] == [b"b.png", b"deep/er/c.PNG"]


def test_a_listing_is_fresh_and_knows_its_neighbours(root: str) -> None:
    storage.write_bytes(storage.join(root, "run/1"), b"")
    assert len(storage.listing(storage.join(root, "run"))) == 1
    storage.write_bytes(storage.join(root, "run/2"), b"")
    storage.write_bytes(storage.join(root, "runner/3"), b"")
    assert len(storage.listing(storage.join(root, "run"))) == 2


def test_a_linked_folder_is_listed_and_a_circle_ends(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    assert storage.listing(str(tmp_path / "data")) == [str(tmp_path / "data/link/a.png")]


def test_a_file_being_written_is_not_listed(root: str) -> None:
    storage.write_bytes(storage.join(root, "old"), b"")
    with storage.writing(storage.join(root, "new")) as file:
        file.write(b"half")
        assert len(storage.listing(root)) == 1
        assert not storage.exists(storage.join(root, "new"))
    assert len(storage.listing(root)) == 2


def _write_half(file: BinaryIO, failure: type[BaseException]) -> None:
    file.write(b"new")
    raise failure


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(root: str, failure: type[BaseException]) -> None:
    url = storage.join(root, "x")
    storage.write_bytes(url, b"old")
    with pytest.raises(failure), storage.writing(url) as file:
        _write_half(file, failure)
    assert storage.read_bytes(url) == b"old"
    if not root.startswith("memory"):
        assert os.listdir(root.removeprefix("file://")) == ["x"]


def test_a_block_that_closes_the_file_has_written_it(root: str) -> None:
    url = storage.join(root, "x")
    with storage.writing(url) as file:
        file.write(b"all")
        file.close()
    assert storage.read_bytes(url) == b"all"


def test_an_error_about_another_file_is_not_taken_for_ours(root: str) -> None:
    with pytest.raises(FileNotFoundError), storage.writing(storage.join(root, "x")):
        os.stat("/no/such/file")


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "ours"), b"")
    (tmp_path / "usual").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_disk_that_is_full_half_way_leaves_nothing(tmp_path: Path) -> None:
    url = str(tmp_path / "x.bin")
    with tiny_files(), pytest.raises(StorageError, match=r"cannot write .*x\.bin: File too large"):
        storage.write_bytes(url, bytes(100_000))
    with tiny_files(), pytest.raises(StorageError, match=r"cannot write .*x\.bin"), storage.writing(url) as file:
        np.save(file, np.zeros(100_000))
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_at_the_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        storage.write_bytes(str(tmp_path / "x"), b"1")
    assert os.listdir(tmp_path) == []


def _below_a_file(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file" / "x")


def _a_folder(folder: Path) -> str:
    return str(folder)


def _read_only(folder: Path) -> str:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder.chmod(0o500)
    return str(folder / "x")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (_below_a_file, "is a file, not a folder"),
        (_a_folder, "it is a folder"),
        (_read_only, "access is denied"),
    ],
)
def test_an_unwritable_target_says_so(tmp_path: Path, target: Callable[[Path], str], reason: str) -> None:
    url = target(tmp_path)
    with pytest.raises(StorageError, match=reason) as caught:
        storage.write_bytes(url, b"1")
    assert url in str(caught.value)


def test_what_is_not_there_says_so(root: str) -> None:
    url = storage.join(root, "nothing")
    with pytest.raises(StorageError, match=r"cannot read .*nothing: it does not exist"):
        storage.read_bytes(url)
    with pytest.raises(StorageError, match=r"cannot list .*nothing"):
        storage.listing(url)


def test_a_file_is_not_listed_as_a_folder(root: str) -> None:
    storage.write_bytes(storage.join(root, "x"), b"1")
    with pytest.raises(StorageError, match="folder"):
        storage.listing(storage.join(root, "x"))


def test_a_scheme_that_nobody_knows_says_so() -> None:
    with pytest.raises(StorageError, match="cannot read nonsense://x"):
        storage.read_bytes("nonsense://x")
    with pytest.raises(StorageError, match="cannot write nonsense://x"):
        storage.write_bytes("nonsense://x", b"1")


def test_remove_takes_a_file_a_tree_and_what_is_not_there(root: str) -> None:
    for name in ["file", "tree/a", "tree/b/[1]*", "treetop"]:
        storage.write_bytes(storage.join(root, name), b"")
    for name in ["file", "tree", "nothing"]:
        storage.remove(storage.join(root, name))
    assert storage.listing(root) == [storage.join(root, "treetop")]
    assert not storage.exists(storage.join(root, "tree"))


def test_remove_spares_what_a_link_points_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    storage.remove(str(tmp_path / "link"))
    assert (tmp_path / "real" / "a").exists()


@pytest.mark.parametrize("url", ["/", "file:///", "s3://bucket", "s3://bucket/"])
def test_remove_refuses_a_whole_system(url: str) -> None:
    with pytest.raises(StorageError, match="whole"):
        storage.remove(url)


def test_json_comes_back(root: str) -> None:
    url = storage.join(root, "x.json")
    value = {"text": "Größe", "list": [1, 2.5, None]}
    storage.write_json(url, value)
    assert storage.read_json(url) == value


@pytest.mark.parametrize("text", [b"{half", b"[1]", b"\xff\xfe"])
def test_a_damaged_json_file_says_so(tmp_path: Path, text: bytes) -> None:
    url = str(tmp_path / "x.json")
    storage.write_bytes(url, text)
    with pytest.raises(FormatError, match=r"x\.json"):
        storage.read_json(url)


def test_json_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nan"):
        storage.write_json(str(tmp_path / "x.json"), {"auc": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"some bytes"])
def test_a_mapped_file_is_what_was_written_even_after_it_is_replaced(root: str, content: bytes) -> None:
    storage.write_bytes(f"{root}/x", content)
    mapped = storage.mapped(f"{root}/x")
    storage.write_bytes(f"{root}/x", b"other")
    assert bytes(mapped) == content
    with pytest.raises(StorageError, match="cannot read"):
        storage.mapped(f"{root}/nothing")
