"""Files by URL: a local path, s3://bucket/key or memory://x; written whole or not at all, local ones for their owner.

The endpoint and the credentials of s3:// come from the environment: AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_DEFAULT_REGION.

Storage that has answered before and cannot be reached now is waited for, two minutes; one that never answered
fails in seconds, since its address may be wrong.
"""

import contextlib
import errno
import json
import mimetypes
import mmap
import os
import shutil
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError, ConnectTimeoutError, EndpointConnectionError, NoCredentialsError
from fsspec import AbstractFileSystem

from rayad import bounded, local
from rayad.errors import FormatError, StorageError

T = TypeVar("T")
KEYS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"),
)
"""Variables of the environment by which s3:// is opened."""
PATIENCE_S = 120.0
"""How long storage that has answered before is waited for."""
UNREACHABLE = (EndpointConnectionError, ConnectTimeoutError, ConnectionRefusedError)


def encodable(url: str) -> str:
    """As it can be written into a file or a page: names of local files may be in no encoding."""
    return url.encode("utf-8", "backslashreplace").decode()


def join(url: str, *parts: str) -> str:
    """The URL of a file or folder below `url`; a scheme stays as it is."""
    head = url if url.endswith("://") else url.rstrip("/") + "/" if url else ""
    return head + "/".join(part.strip("/") for part in parts)


def absolute(url: str) -> str:
    """The same place for a process that runs in another folder."""
    path = _local(url)
    return url if path is None else os.path.abspath(path)


def is_local(url: str) -> bool:
    """Whether it is a place on this machine's disks."""
    return _local(url) is not None


def local_path(url: str) -> str:
    """The path of a local place; ValueError where it is none."""
    path = _local(url)
    if path is None:
        raise ValueError(f"{url} is no local path")
    return path


def exists(url: str) -> bool:
    """Whether there is a file or a folder; StorageError where that cannot be asked.

    Outside local disks a folder is there as long as a file is below it.
    """
    path = _local(url)
    if path is not None:
        return os.path.exists(path)
    return _patiently("look at", url, lambda: _is_there(url))


def modified(url: str) -> datetime:
    """When a file was written last; object stores know it to the second."""
    path = _local(url)
    with _explained("look at", url):
        if path is not None:
            return datetime.fromtimestamp(os.stat(path).st_mtime, UTC)
        filesystem, key = _remote(url)
        return filesystem.modified(key)


def size(url: str) -> int:
    """Bytes of a file; StorageError where that cannot be asked."""
    return _patiently("look at", url, lambda: _size(url))


def versions(urls: Iterable[str]) -> dict[str, str]:
    """What tells the content of files from that of others that had their names: size and time of change, or the ETag.

    Returns:
        URL -> version, empty where there is no such file, and of what a web server has, which is not asked: instances
        of an archive keep their content as long as their UIDs.

    Raises:
        StorageError: it cannot be asked.
    """
    by_url: dict[str, str] = {}
    urls_by_bucket: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        path = _local(url)
        if path is not None:
            by_url[url] = _local_version(url, path)
        elif url.startswith(("http://", "https://")):
            by_url[url] = ""
        else:
            urls_by_bucket["/".join(url.split("/")[:3])].append(url)
    for bucket_urls in urls_by_bucket.values():
        by_url |= _remote_versions(bucket_urls)
    return by_url


def _local_version(url: str, path: str) -> str:
    with _explained("look at", url):
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _remote_versions(urls: Sequence[str]) -> dict[str, str]:
    """Versions of the objects of one bucket, by one listing of the folder that holds them all."""
    levels = zip(*(url.split("/")[:-1] for url in urls), strict=False)
    folder = "/".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))

    def ask() -> dict[str, dict[str, Any]]:
        filesystem, key = _remote(folder)
        objects = cast(dict[str, dict[str, Any]], filesystem.find(key, detail=True))
        head = filesystem.unstrip_protocol(key).rstrip("/") + "/"
        return {
            join(folder, filesystem.unstrip_protocol(name).removeprefix(head)): details
            for name, details in objects.items()
        }

    details_by_url = _patiently("list", folder, ask)
    return {url: _version(details_by_url.get(url, {})) for url in urls}


def _version(details: dict[str, Any]) -> str:
    """The version of an object, by whichever names its file system gives it."""
    mark = next(
        (details[name] for name in ("ETag", "etag", "LastModified", "mtime", "created") if details.get(name)), ""
    )
    return f"{details.get('size', '')} {mark}".strip()


def listing(url: str, suffixes: tuple[str, ...] = (), roots: Sequence[str] = ()) -> list[str]:
    """Every file below a folder, recursively and sorted, as URLs that open.

    Args:
        url: the folder.
        suffixes: endings to keep, such as ".png", whatever their case; none keeps all.
        roots: a link to a folder outside of these is listed and not followed; none: all are followed.

    Returns:
        The files, without those that are hidden or inside a hidden folder: their name starts with a dot.

    Raises:
        StorageError: there is no such folder, or it cannot be read.
    """
    path = _local(url)
    names = _patiently("list", url, lambda: _remote_names(url) if path is None else _local_names(path, roots))
    endings = tuple(suffix.lower() for suffix in suffixes)
    visible_names = (name for name in names if not any(part.startswith(".") for part in name.split("/")))
    return [join(url, name) for name in sorted(visible_names) if not endings or name.lower().endswith(endings)]


def any_file(url: str) -> str:
    """Name of something in a local folder, or URL of a file below another one; empty: nothing but what is hidden."""
    path = _local(url)
    if path is None:
        return next(iter(listing(url)), "") if exists(url) else ""
    with _explained("list", url):
        names = os.listdir(path) if os.path.isdir(path) else []
    return min((name for name in names if not name.startswith(".")), default="")


@contextmanager
def reading(url: str) -> Iterator[BinaryIO]:
    """Open for reading in binary; seekable, also on s3://. StorageError where it cannot be read."""
    file = _patiently("read", url, lambda: _opened_for_reading(url))
    with _explained("read", url, inside=True), file:
        yield cast(BinaryIO, file)


def writing(url: str, through_links: bool = True) -> AbstractContextManager[BinaryIO]:
    """Open for writing in binary: the file appears whole when the block ends, or not at all.

    Missing folders are made. An exception inside the block leaves the old file, or none. On local disks files and new
    folders are for their owner alone, or as RAYAD_UMASK says.

    Args:
        through_links: False: no folder of a local path may be a link; the path is absolute.

    Raises:
        StorageError: the target cannot be written: no permission, no space, no such bucket, a folder.
    """
    path = _local(url)
    return _writing_remotely(url) if path is None else _writing_locally(path, url, through_links)


def read_bytes(url: str, roots: Sequence[str] = ()) -> bytes:
    """The whole content of a file.

    Args:
        roots: a local file must lie below one of these, once links are followed; none: it may lie anywhere.

    Raises:
        StorageError: it cannot be read, or does not lie there.
    """

    def whole() -> bytes:
        path = _local(url)
        if path is None:  # in one request: between two of them the object could be replaced
            filesystem, key = _remote(url)
            return cast(bytes, filesystem.cat_file(key))
        with _opened_below(path, roots) if roots else open(path, "rb") as file:
            return file.read()

    return _patiently("read", url, whole)


def leads_out(url: str, roots: Sequence[str]) -> bool:
    """Whether a local name is a link to a place outside of the roots."""
    path = _local(url)
    if path is None or not os.path.islink(path):
        return False
    try:
        local.resolve(path, _local_paths(roots))
    except OSError:
        return True
    return False


def mapped(url: str) -> bytes | mmap.mmap:
    """The whole content of a file, not to be written to; a local one is mapped and so read where it is looked at."""
    path = _local(url)
    if path is None:
        return read_bytes(url)
    with reading(url) as file:
        empty = os.fstat(file.fileno()).st_size == 0
        return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def part(url: str, start: int, end: int) -> bytes:
    """The bytes of a file from one place to another, fewer where it ends before; StorageError if it cannot be read."""

    def read() -> bytes:
        path = _local(url)
        if path is None:
            filesystem, key = _remote(url)
            return cast(bytes, filesystem.cat_file(key, start=start, end=end))
        with open(path, "rb") as file:
            return os.pread(file.fileno(), end - start, start)

    return _patiently("read", url, read)


def write_bytes(url: str, data: bytes, through_links: bool = True) -> None:
    """Write a whole file, atomically; arguments and errors as of `writing`."""
    with writing(url, through_links) as file:
        file.write(data)


def head(url: str, size: int) -> bytes:
    """The first bytes of a file; StorageError where it cannot be read."""
    return part(url, 0, size)


def read_json(url: str, largest: int = bounded.LARGEST_JSON, roots: Sequence[str] = ()) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        largest: bytes of a file that is read.
        roots: as of `read_bytes`.

    Raises:
        FormatError: the file is not JSON, larger, nested too deep, or holds something else than an object.
        StorageError: as `read_bytes`.
    """
    bounded.require_size(_patiently("read", url, lambda: _size(url)), url, largest)
    value = bounded.parse_json(read_bytes(url, roots), url, largest)
    if not isinstance(value, dict):
        raise FormatError(f"{url}: a JSON object is wanted, not a {type(value).__name__}")
    return value


def write_json(url: str, value: dict[str, Any], through_links: bool = True) -> None:
    """Write an object as indented JSON, as `writing` does; ValueError for nan and infinities, which it cannot hold."""
    write_bytes(url, json_bytes(value), through_links)


def json_bytes(value: dict[str, Any]) -> bytes:
    """An object as `write_json` writes it; ValueError for nan and infinities."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def make_folder(url: str) -> None:
    """Make a local folder, and those on the way to it, with permissions as of `writing`; nothing on object stores."""
    path = _local(url)
    if path is not None:
        with _explained("make", url):
            local.make_folders(path)


def remove(url: str) -> None:
    """Remove a file or a folder with everything below it; nothing happens where there is none.

    Raises:
        StorageError: it cannot be removed, or it is a whole bucket or file system.
    """
    path = _local(url)
    if path is None:
        _patiently("remove", url, lambda: _remove_remotely(url))
        return
    with _explained("remove", url):
        if os.path.abspath(path) == os.path.sep:
            raise PermissionError("it is the whole file system")
        elif os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)


def remove_empty(url: str) -> None:
    """Remove a local folder if nothing is in it; elsewhere such a folder is none."""
    path = _local(url)
    if path is not None:
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _local(url: str) -> str | None:
    """The path of a local URL, None where the URL has another scheme."""
    scheme, separator, path = url.partition("://")
    if not separator:
        return url
    return path if scheme == "file" else None


def _remote(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the key in it; listings are always fresh."""
    options: dict[str, Any] = {}
    if url.startswith("s3://"):
        options = {
            # botocore would find these, but fsspec keeps one file system for each set of options
            "endpoint_url": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
            "key": os.environ.get("AWS_ACCESS_KEY_ID"),
            "secret": os.environ.get("AWS_SECRET_ACCESS_KEY"),
            "token": os.environ.get("AWS_SESSION_TOKEN"),
            "use_listings_cache": False,
            "config_kwargs": {"connect_timeout": 3, "read_timeout": 60, "retries": {"max_attempts": 2}},
        }
    filesystem, key = fsspec.url_to_fs(url, **options)
    _opened[id(filesystem)] = filesystem
    return filesystem, key


_opened: dict[int, AbstractFileSystem] = {}
"""Kept for ever, as fsspec does. But fsspec forgets its parent's in a forked child: finalized there, they would take
the parent's connections out of the epoll set that both share, and the parent would wait for ever."""


def _patiently(verb: str, url: str, action: Callable[[], T]) -> T:
    """What the action gives; while storage that has answered before cannot be reached, it is tried again."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    service = url.partition("://")[0], endpoint
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            with _explained(verb, url):
                result = action()
        except StorageError as error:
            is_unreachable = isinstance(error.__cause__, UNREACHABLE) and (
                service in _answered or os.environ.get(EXPECTED) == "1"
            )
            if not is_unreachable or time.monotonic() > until:
                raise
            time.sleep(1)
        else:
            _answered.add(service)
            return result


_answered: set[tuple[str, str]] = set()
"""Schemes and endpoints that this process has heard of."""
EXPECTED = "RAYAD_STORAGE_EXPECTED"
"""Set to 1 in the environment of a process that works for one which has heard of the storage: it waits for all."""


def _opened_for_reading(url: str) -> Any:
    """A file that is open for reading in binary, of whichever library."""
    path = _local(url)
    if path is not None:
        return open(path, "rb")
    filesystem, key = _remote(url)
    return filesystem.open(key, "rb")


def _opened_below(path: str, roots: Sequence[str]) -> BinaryIO:
    """A local file that is open for reading and lies below one of the roots."""
    descriptor = local.open_file(local.resolve(path, _local_paths(roots)))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file")
    return open(descriptor, "rb")


def _local_paths(urls: Sequence[str]) -> list[str]:
    return [path for path in map(_local, urls) if path is not None]


def _size(url: str) -> int:
    """Bytes of a file."""
    path = _local(url)
    if path is not None:
        return os.stat(path).st_size
    filesystem, key = _remote(url)
    return cast(int, filesystem.size(key))


def _is_there(url: str) -> bool:
    """Whether there is an object or something below the prefix."""
    filesystem, key = _remote(url)
    try:
        is_file = filesystem.info(key)["type"] == "file"
    except FileNotFoundError:
        return False
    # SeaweedFS keeps an emptied folder for a while, as a file without a name
    return is_file or any(name for _, _, files in filesystem.walk(key) for name in files)


def _local_names(folder: str, roots: Sequence[str]) -> list[str]:
    """Relative names of the files below a folder; links to folders are followed, once each, or as `listing` says."""
    if not os.path.isdir(folder):
        raise NotADirectoryError(errno.ENOTDIR, "there is no such folder")
    names: list[str] = []
    visited: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_reraise):
        if roots:
            outside_folders = [name for name in folders if leads_out(os.path.join(place, name), roots)]
            folders[:] = [name for name in folders if name not in outside_folders]
            files += outside_folders
        if os.path.realpath(place) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(place))
        names += [os.path.relpath(os.path.join(place, file), folder) for file in files]
    return names


def _reraise(error: OSError) -> None:
    raise error


def _remote_names(url: str) -> list[str]:
    """Names of the objects below a prefix, relative to it."""
    filesystem, key = _remote(url)
    head = filesystem.unstrip_protocol(key).rstrip("/") + "/"
    urls = [filesystem.unstrip_protocol(name) for name in filesystem.find(key)]
    names = [name.removeprefix(head) for name in urls if name.startswith(head)]
    if not names and filesystem.info(key)["type"] != "directory":
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder")
    return names


def _remove_remotely(url: str) -> None:
    filesystem, key = _remote(url)
    if "/" not in key.strip("/") and url.startswith("s3://"):
        raise PermissionError("it is a whole bucket")
    for name in filesystem.find(key):  # not rm(recursive=True), which takes * and [ in a name for a pattern
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm_file(name)


@contextmanager
def _writing_locally(path: str, url: str, through_links: bool) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        with _explained("write", url):
            part = stack.enter_context(local.part(path, through_links))
        with _explained("write", url, inside=True), part.open() as file:
            yield file
        with _explained("write", url):
            part.finish()


@contextmanager
def _writing_remotely(url: str) -> Iterator[BinaryIO]:
    """Collect in a local temporary file, below RAYAD_TMPDIR: an upload makes an object visible when it is complete."""
    with ExitStack() as stack:
        with _explained("write", url):
            filesystem, key = _remote(url)
            descriptor, path = stack.enter_context(local.temporary(os.environ.get("RAYAD_TMPDIR")))
        with _explained("write", url, inside=True), os.fdopen(os.dup(descriptor), "wb") as file:
            yield file
        _patiently("write", url, lambda: filesystem.put_file(path, key, **_description(url, key)))


def _description(url: str, key: str) -> dict[str, Any]:
    """What S3 is told of an object: the type of its content by the key's ending, as s3fs does with a file's name."""
    kind = mimetypes.guess_type(key)[0] if url.startswith("s3://") else None
    return {"ContentType": kind} if kind else {}


@contextmanager
def _explained(verb: str, url: str, *, inside: bool = False) -> Iterator[None]:
    """Turn what the system says into one StorageError about the URL.

    `inside` a caller's block only the failures of the stream itself count: those of other files
    carry a file name.
    """
    try:
        yield
    except (OSError, BotoCoreError, ClientError) as error:
        if inside and getattr(error, "filename", None) is not None:
            raise
        raise StorageError(f"cannot {verb} {url}: {_reason(error)}") from error
    except (ValueError, ImportError) as error:  # fsspec: a scheme or a name that it does not know
        if inside:
            raise
        raise StorageError(f"cannot {verb} {url}: {error}") from error


def _reason(error: Exception) -> str:
    """What to tell a user, in a few words."""
    if isinstance(error, NoCredentialsError):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, BotoCoreError):
        return str(error)
    if isinstance(error, ClientError):
        return f"the connection was cut ({error})"
    if isinstance(error, PermissionError):
        return f"access is denied ({getattr(error, 'strerror', None) or error})"
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, NotADirectoryError | FileExistsError) and error.filename is not None:
        return f"{error.filename} is a file, not a folder"
    return getattr(error, "strerror", None) or f"the disk or the connection failed ({error or type(error).__name__})"
