"""Everything that rayad raises on purpose.

RayadError
 ├── OptionError     the command or a configuration is wrong: unknown name, impossible value
 ├── StorageError    a URL cannot be reached, listed, read or written
 ├── ImageError      a file is not an image that rayad can use
 ├── DatasetError    a data set's files, labels and images do not fit together
 ├── FormatError     a corpus or bundle is of a newer schema, damaged or altered
 ├── TrainingError   learning failed: a loss that is not a number, a collapse
 ├── ClusterError    Ray did not start, cannot be reached, or was lost
 └── ServiceError    a rayad server refuses what it is asked for, or cannot give it

A message is one sentence: what was wanted, what came, which file.
"""


class RayadError(Exception):
    """The root of the tree; the command line prints it as one line and exits with 1."""


class OptionError(RayadError):
    """The command or a configuration is wrong; the command line exits with 2."""


class StorageError(RayadError):
    """A URL cannot be reached, listed, read or written."""


class ImageError(RayadError):
    """A file is not an image that rayad can use."""


class DatasetError(RayadError):
    """A data set's files, labels and images do not fit together."""


class FormatError(RayadError):
    """A corpus or bundle is of a newer schema, damaged or altered."""


class TrainingError(RayadError):
    """Learning failed: a loss that is not a number, a collapse."""


class CollapseError(TrainingError):
    """A model has learned to ignore what it sees; only a rehearsal may go on with it."""


class ClusterError(RayadError):
    """Ray did not start, cannot be reached, or was lost."""


class ServiceError(RayadError):
    """A rayad server answers by a problem (RFC 9457): it refuses what it is asked for, or cannot give it."""

    def __init__(self, status: int, title: str, detail: str = "", retry_after: float = 0.0) -> None:
        """What it says.

        Args:
            status: of HTTP.
            title: of the kind of problem.
            detail: a sentence for a reader.
            retry_after: seconds after which it may be asked again; 0: it does not say.
        """
        super().__init__(status, title, detail, retry_after)
        self.status, self.title, self.detail, self.retry_after = status, title, detail, retry_after

    def __str__(self) -> str:
        return f"the server answers {self.status}: {self.detail or self.title}"


def named(kind: str, message: str) -> RayadError:
    """The error of this class and with this message, from a process that could only say so in words."""
    return {error.__name__: error for error in RayadError.__subclasses__()}[kind](message)


def reason(error: BaseException) -> str:
    """Why something failed, in a sentence for its row; of what nobody expected, its kind and the first line."""
    if isinstance(error, RayadError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there was not enough memory for it"
    first = next(iter(str(error).splitlines()), "")
    return f"it failed: {type(error).__name__}: {first}".removesuffix(": ")
