"""rayad.storage on a local folder and in memory; tests/storage has the same on a real S3 server."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from rayad import local, storage
from rayad.errors import FormatError, OptionError, StorageError


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


@pytest.fixture
def open_umask() -> Iterator[None]:
    """The process lets everybody read and write what it makes, unless it says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture(params=["unnamed", "named"])
def unfinished(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether files that are being written have a name: on systems that cannot do without."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("open_umask", "unfinished")
@pytest.mark.parametrize(("umask", "file", "folder"), [("", 0o600, 0o700), ("027", 0o640, 0o750), ("0", 0o666, 0o777)])
def test_new_files_and_folders_are_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: str, file: int, folder: int
) -> None:
    if umask:
        monkeypatch.setenv("RAYAD_UMASK", umask)
    for _ in range(2):  # the second replaces the first
        storage.write_bytes(str(tmp_path / "a" / "b" / "c.npz"), b"")
    assert mode(tmp_path / "a" / "b" / "c.npz") == file
    assert [mode(tmp_path / "a"), mode(tmp_path / "a" / "b")] == [folder, folder]
    assert os.listdir(tmp_path / "a" / "b") == ["c.npz"]


def test_a_folder_that_is_there_keeps_its_permissions_and_hands_on_its_group(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)
    storage.write_bytes(str(tmp_path / "shared" / "new" / "x"), b"")
    assert mode(tmp_path / "shared") == 0o2775
    assert mode(tmp_path / "shared" / "new") == 0o2700


@pytest.mark.parametrize("text", ["", "u=rwx", "0o77", "8", "0700", "-77", "77 "])
def test_a_umask_that_is_none_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RAYAD_UMASK", text)
    with pytest.raises(OptionError, match="RAYAD_UMASK is an octal number from 000 to 077, such as 027, not "):
        storage.write_bytes(str(tmp_path / "x"), b"")
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("open_umask")
def test_a_file_of_lines_is_private_also_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = tmp_path / "audit"
    assert local.private(str(audit)) == str(audit)
    assert mode(audit) == 0o600
    audit.write_text("line")
    for before, umask, after in ((0o666, "077", 0o600), (0o644, "027", 0o640), (0o400, "077", 0o400)):
        audit.chmod(before)
        monkeypatch.setenv("RAYAD_UMASK", umask)
        if before != 0o400 or os.geteuid() == 0:
            local.private(str(audit))
        assert mode(audit) == after
    assert audit.read_text() == "line"


def test_a_file_of_lines_that_cannot_be_made_private_is_refused(tmp_path: Path) -> None:
    local.private("/dev/null")
    for path in (tmp_path, tmp_path / "none" / "audit"):
        with pytest.raises(StorageError, match=f"cannot keep {path} for its owner alone: .*; name another file"):
            local.private(str(path))


WRITER = """
import sys
from rayad import storage
with storage.writing(sys.argv[1]) as file:
    file.write(bytes(1_000_000))
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
"""
MANY = """
import itertools, sys
from rayad import storage
for number in itertools.count():
    storage.write_bytes(f"{sys.argv[1]}/{number}", bytes(100_000))
    print(number, flush=True)
"""


def kill_after(lines: int, program: str, *arguments: str) -> None:
    """Run a program until it has printed so many lines, and end it as nothing can be ended more abruptly."""
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(lines):
            assert child.stdout.readline()
        child.kill()
        assert child.wait() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has files without a name")
def test_a_kill_in_the_middle_of_a_write_leaves_nothing(tmp_path: Path) -> None:
    kill_after(1, WRITER, str(tmp_path / "new"))
    assert os.listdir(tmp_path) == []
    storage.write_bytes(str(tmp_path / "old"), b"old")
    kill_after(1, WRITER, str(tmp_path / "old"))
    assert os.listdir(tmp_path) == ["old"]
    assert storage.read_bytes(str(tmp_path / "old")) == b"old"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has files without a name")
@pytest.mark.parametrize("lines", [1, 50, 200])
def test_a_kill_at_any_moment_leaves_whole_files(tmp_path: Path, lines: int) -> None:
    kill_after(lines, MANY, str(tmp_path))
    assert len(os.listdir(tmp_path)) >= lines
    assert {(file.name.isdecimal(), file.stat().st_size) for file in tmp_path.iterdir()} == {(True, 100_000)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder in/, a secret beside it, and links of all kinds."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret.json").write_text('{"secret": 1}')
    (tmp_path / "in" / "good.json").write_text("{}")
    (tmp_path / "in" / "back").symlink_to(tmp_path / "in" / "sub")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "secret.json").symlink_to(tmp_path / "out" / "secret.json")
    (tmp_path / "in" / "self.json").symlink_to(tmp_path / "in" / "self.json")
    os.mkfifo(tmp_path / "in" / "pipe.json")
    return tmp_path


@pytest.mark.usefixtures("unfinished")
@pytest.mark.parametrize("name", ["in/away/new", "in/away/deep/new", "in/back/new", "in/good.json/new"])
def test_what_may_not_go_through_links_does_not(tree: Path, name: str) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*new: .* in its path is a file or a link, not a folder"):
        storage.write_bytes(str(tree / name), b"", through_links=False)
    assert os.listdir(tree / "out") == ["secret.json"]
    assert os.listdir(tree / "in" / "sub") == []


@pytest.mark.usefixtures("open_umask", "unfinished")
def test_without_links_files_and_folders_are_made_as_with_them(tree: Path) -> None:
    place = tree / "in" / "new" / "deep" / "x.json"
    for number in range(2):
        storage.write_json(f"file://{place}", {"number": number}, through_links=False)
    assert storage.read_json(str(place)) == {"number": 1}
    assert [mode(place), mode(place.parent), mode(place.parent.parent)] == [0o600, 0o700, 0o700]
    assert os.listdir(place.parent) == ["x.json"]


def test_a_folder_that_turns_into_a_link_all_the_time_never_takes_a_file_out(tree: Path) -> None:
    """A race that is lost once in a thousand turns would be seen here."""
    place, over = tree / "in" / "turning", threading.Event()

    def turn() -> None:
        while not over.is_set():
            with suppress(OSError):
                place.symlink_to(tree / "out")
            with suppress(OSError):
                place.rename(tree / "in" / f"was-{uuid.uuid4().hex}")

    thread = threading.Thread(target=turn)
    thread.start()
    written = 0
    try:
        for _ in range(2000):
            with suppress(StorageError):
                storage.write_bytes(str(place / "x"), b"", through_links=False)
                written += 1
    finally:
        over.set()
        thread.join()
    assert 0 < written < 2000
    assert os.listdir(tree / "out") == ["secret.json"]


def test_links_lead_out_of_no_root(tree: Path) -> None:
    roots = [str(tree / "in"), "s3://bucket/elsewhere"]
    assert storage.read_json(str(tree / "in/good.json"), roots=roots) == {}
    assert storage.read_json(f"file://{tree}/in/away/secret.json", roots=[*roots, str(tree / "in/away")]) == {
        "secret": 1
    }
    for name in ("in/secret.json", "in/away/secret.json", "out/secret.json", "in/back/../../out/secret.json"):
        with pytest.raises(StorageError, match=r"cannot read .*secret\.json: access is denied .*or a link leads there"):
            storage.read_json(str(tree / name), roots=roots)
    for name, reason in (("pipe.json", "it is not a file"), ("self.json", "cannot read"), ("none.json", "not exist")):
        with pytest.raises(StorageError, match=reason):
            storage.read_json(str(tree / "in" / name), roots=roots)


def test_a_listing_that_stays_below_its_roots_names_the_links_that_lead_out(tree: Path) -> None:
    (tree / "in" / "sub" / "x").touch()
    (tree / "in" / "back").unlink()
    below = storage.listing(str(tree / "in"), roots=[str(tree / "in")])
    names = ["away", "good.json", "pipe.json", "secret.json", "self.json", "sub/x"]
    assert below == [str(tree / "in" / name) for name in names]
    out = [os.path.basename(url) for url in below if storage.leads_out(url, [str(tree / "in")])]
    assert out == ["away", "secret.json"]


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


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize(("depth", "fits"), [(64, True), (65, False), (100_000, False)])
def test_json_nests_as_deep_as_the_bound_says(tmp_path: Path, opening: str, depth: int, fits: bool) -> None:
    url, inner = str(tmp_path / "x.json"), depth - 1
    closing = "]" if opening == "[" else "}"
    text = '{"a":' + opening * inner + "1" + closing * inner + "}"
    storage.write_bytes(url, text.encode())
    if fits:
        assert list(storage.read_json(url)) == ["a"]
        return
    with pytest.raises(
        FormatError, match=r"x\.json: objects and lists of JSON may nest 64 levels deep, these nest deep"
    ):
        storage.read_json(url)


def test_json_is_as_large_as_the_bound_says(root: str) -> None:
    url = storage.join(root, "x.json")
    storage.write_bytes(url, b'{"a": "' + bytes([97]) * 991 + b'"}')
    assert len(storage.read_json(url, largest=1000)["a"]) == 991
    with pytest.raises(FormatError, match=r"x\.json: JSON of at most 0\.000999 MB is read, not of 0\.001 MB"):
        storage.read_json(url, largest=999)


def test_a_json_file_that_declares_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match=r"x\.json: JSON of at most 256 MB is read, not of 1\.1e\+06 MB"):
        storage.read_json(str(tmp_path / "x.json"))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000])
def test_json_has_finite_numbers(tmp_path: Path, number: str) -> None:
    (tmp_path / "x.json").write_text(f'{{"a": [{number}]}}')
    with pytest.raises(FormatError, match=r"x\.json: is not JSON: "):
        storage.read_json(str(tmp_path / "x.json"))


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
