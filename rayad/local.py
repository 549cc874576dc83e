"""Files of this machine: private to their owner, written whole or not at all, opened where no link leads away.

RAYAD_UMASK is what a umask is, in octal: permissions that new files and folders do not get. Where it is not set it is
077, whatever the umask of the process: the owner alone may read them. 027 lets the group read.
"""

import errno
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, cast

from rayad.errors import OptionError, StorageError

VARIABLE = "RAYAD_UMASK"
DESCRIPTORS = "/proc/self/fd"
"""Where Linux gives paths to files that are open, also to those that have no name."""
_FOLDER = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)  # O_PATH needs no permission to list it
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
"""What file systems say that have no unnamed files; EISDIR is what kernels before 3.11 make of the flag."""


class OutsideError(PermissionError):
    """A path leads out of the folders that it must lie in."""


def umask() -> int:
    """Permissions that new files and folders do not get; OptionError where RAYAD_UMASK is none from 000 to 077."""
    text = os.environ.get(VARIABLE, "077")
    if not re.fullmatch(r"0{0,2}[0-7]{1,2}", text):
        raise OptionError(f"{VARIABLE} is an octal number from 000 to 077, such as 027, not {text!r}")
    return int(text, 8)


def make_folders(path: str) -> None:
    """Make a folder and those on the way to it; those that are there keep their permissions."""
    missing: list[str] = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        try:
            _make_folder(folder)
        except FileExistsError:  # another process was faster
            if not os.path.isdir(folder):
                raise


def private(path: str) -> str:
    """The path of a file to which lines are added: it is made if need be, and others lose what RAYAD_UMASK withholds.

    Raises:
        StorageError: it cannot be opened, or it is another account's and so cannot be made private.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
        try:
            _withhold(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"cannot keep {path} for its owner alone: {error.strerror}; name another file") from error
    return path


def resolve(path: str, folders: Sequence[str]) -> str:
    """The path without links, as it can be given to `open_file` and `open_folder`.

    Raises:
        OutsideError: links of both being followed, it lies in none of the folders.
        OSError: a link cannot be followed.
    """
    real = os.path.realpath(path)
    if not any(os.path.commonpath([real, top]) == top for top in map(os.path.realpath, folders)):
        raise OutsideError(errno.EACCES, "it lies outside of the allowed folders, or a link leads there")
    return real


def open_file(path: str) -> int:
    """A descriptor of a file for reading, by an absolute path of which no part may be a link; OSError where one is.

    Each folder is opened from the one before, so none can become a link meanwhile. A pipe does not block.
    """
    folder, name = os.path.split(path)
    folder_descriptor = open_folder(folder)
    try:
        return os.open(name or ".", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder_descriptor)
    finally:
        os.close(folder_descriptor)


def open_folder(path: str, make: bool = False) -> int:
    """A descriptor of a folder to open, make and name files in, by a path as of `open_file`.

    Args:
        make: those that are missing, the folder or others on the way to it, are made.
    """
    descriptor = os.open("/", _FOLDER)
    for name in filter(None, path.split("/")):
        try:
            below_descriptor = _entered(name, descriptor, make)
        finally:
            os.close(descriptor)
        descriptor = below_descriptor
    return descriptor


@dataclass(frozen=True)
class PartialFile:
    """A file that is being written: it has no name yet, or a hidden one where the file system knows no other."""

    folder: int
    hidden: str
    name: str
    descriptor: int

    def open(self) -> BinaryIO:
        """The file, for writing; the part stays when it is closed."""
        return os.fdopen(os.dup(self.descriptor), "wb")

    def finish(self) -> None:
        """Put it on the disk and in its place, where others see it from now on.

        Only in the place of another file it has a hidden name for a moment: there is no call that replaces a file by
        one without a name.
        """
        os.fsync(self.descriptor)
        if not os.fstat(self.descriptor).st_nlink:
            try:
                self._link(self.name)
            except FileExistsError:
                self._link(self.hidden)
            else:
                return
        os.replace(self.hidden, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def _link(self, name: str) -> None:
        # with a folder's descriptor Python calls linkat, which follows the link that /proc has of the file
        os.link(f"{DESCRIPTORS}/{self.descriptor}", name, src_dir_fd=self.folder, dst_dir_fd=self.folder)


@contextmanager
def part(path: str, through_links: bool = True) -> Iterator[PartialFile]:
    """A new file for a path; unless it is finished when the block ends, nothing is left of it.

    Args:
        path: of the file that it will be; missing folders are made.
        through_links: False: no folder of the path may be a link, and it is absolute.

    Raises:
        OSError: the folder cannot be made or written to, or the path is that of a folder.
    """
    folder_path, name = os.path.split(path)
    if not name or os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    hidden = f".{uuid.uuid4().hex}.part"
    folder = _open_any_folder(folder_path or ".") if through_links else open_folder(folder_path, make=True)
    try:
        descriptor = _open_part(folder, hidden)
        try:
            yield PartialFile(folder, hidden, name, descriptor)
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(hidden, dir_fd=folder)
    finally:
        os.close(folder)


@contextmanager
def temporary(folder: str | None) -> Iterator[tuple[int, str]]:
    """Descriptor and path of a temporary file that is gone when the block ends, or the process, however it does.

    Where there is no /proc it has a name, `rayad-...`, which a kill leaves.

    Args:
        folder: where it takes its room; None: the system's temporary folder.
    """
    unnamed = os.path.isdir(DESCRIPTORS)
    make = tempfile.TemporaryFile if unnamed else partial(tempfile.NamedTemporaryFile, prefix="rayad-")
    with make(dir=folder) as file:
        yield file.fileno(), f"{DESCRIPTORS}/{file.fileno()}" if unnamed else cast(str, file.name)


def _make_folder(name: str, parent_descriptor: int | None = None) -> None:
    os.mkdir(name, 0o700, dir_fd=parent_descriptor)
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_descriptor)
    try:
        inherited = os.fstat(descriptor).st_mode & stat.S_ISGID  # the group of the folder around it
        os.fchmod(descriptor, inherited | 0o777 & ~umask())
    finally:
        os.close(descriptor)


def _entered(name: str, parent_descriptor: int, make: bool) -> int:
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent_descriptor)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise NotADirectoryError(errno.ENOTDIR, f"{name} in its path is a file or a link, not a folder") from error
    with suppress(FileExistsError):
        _make_folder(name, parent_descriptor)
    return _entered(name, parent_descriptor, make=False)


def _open_any_folder(path: str) -> int:
    make_folders(path)
    return os.open(path, _FOLDER)


def _open_part(folder: int, hidden: str) -> int:
    """A new file in a folder, without a name where that can be done."""
    permissions = 0o666 & ~umask()
    descriptor = _open_unnamed(folder)
    if descriptor is None:
        descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    os.fchmod(descriptor, permissions)
    return descriptor


def _open_unnamed(folder: int) -> int | None:
    unnamed = getattr(os, "O_TMPFILE", 0)
    if not unnamed or not os.path.isdir(DESCRIPTORS):
        return None
    try:
        return os.open(".", os.O_WRONLY | unnamed, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_UNNAMED:
            raise
        return None


def _withhold(descriptor: int) -> None:
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_mode & umask():
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~umask())
