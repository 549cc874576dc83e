"""Find what does not belong in medical images, learned from healthy images alone.

Every place is a folder, s3://bucket/key or memory://x. Exit codes: 0 done, 1 a stage failed, 2 the
command is wrong, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

import ast
import importlib
import importlib.util
import io
import os
import select
import signal
import sys
import textwrap
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Protocol, runtime_checkable

from rayad import local
from rayad.cache import cache
from rayad.errors import OptionError, RayadError
from rayad.terminal import print_error, say, writable

STOPPED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""
TERMINATED = 128 + signal.SIGTERM
GOES_ON = "rayad: stopped; the same command goes on where it stopped"
COMMANDS = {
    "demo": "runs.Demo",
    "run": "runs.RunRecipe",
    "benchmark": "runs.Benchmark",
    "list": "runs.List",
    "inspect": "images.Inspect",
    "ingest": "images.IngestCommand",
    "train": "learning.Train",
    "fit-density": "learning.FitDensity",
    "pair": "learning.Pair",
    "sweep": "learning.Sweep",
    "rescore": "detectors.Rescore",
    "combine": "detectors.Combine",
    "adjust": "detectors.Adjust",
    "teach": "detectors.Teach",
    "calibrate": "detectors.Calibrate",
    "evaluate": "detectors.Evaluate",
    "report": "detectors.Report",
    "heatmap": "detectors.Heatmaps",
    "check": "detectors.Check",
    "dashboard": "dashboard.Dashboard",
    "serve": "services.Serve",
    "watch": "services.Watch",
    "token": "services.Token",
}
"""Name of a command -> module and class of this package; a module is imported when its command is asked for."""
EXTRAS = {
    "serve": ("starlette", "fastapi", "uvicorn", "anyio", "jwt", "limits", "python_multipart"),
    "dashboard": ("tensorboard", "optuna_dashboard"),
}
"""Extra of the package -> the modules that it brings (pyproject.toml)."""


@runtime_checkable
class Command(Protocol):
    """A subcommand: its options, and what it does."""

    def __call__(self) -> None: ...


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code.

    What it writes is for its owner alone, or as RAYAD_UMASK says. When nobody reads what it prints any more, it ends
    with 141, as other tools do.
    """
    received: list[int] = []
    signal.signal(signal.SIGTERM, partial(_interrupt, received))
    sys.excepthook = print_error
    for stream in _streams():
        stream.reconfigure(errors="backslashreplace")  # whatever the locale, no name is a UnicodeEncodeError
    try:
        code = _code(sys.argv[1:] if argv is None else list(argv))
        for stream in _streams():
            stream.flush()
    except BrokenPipeError:
        closed = [stream for stream in _streams() if _is_closed(stream)]
        if not closed:
            raise
        for stream in closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python complains of what is not written
        code = 128 + signal.SIGPIPE
    sys.exit(TERMINATED if code == STOPPED and received else code)


def run(argv: list[str]) -> int:
    """Run a command; the exit code. What goes wrong on purpose is one line on standard error.

    What a command prints is also copied to a file below RAYAD_LOG_URL, where that is set.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    name = next(iter(argv), "")
    if name in ("", "-h", "--help"):
        for line in usage():
            say(line)
        return 0 if name else 2
    from rayad import log

    log_url = os.environ.get("RAYAD_LOG_URL", "") if name in COMMANDS else ""
    with log.copied(log_url, name):
        return _run(argv)


def command(name: str) -> type[Command]:
    """The class of a command; OptionError lists what there is if the name is unknown."""
    if name not in COMMANDS:
        raise OptionError(f"no command {name!r}; rayad has {', '.join(COMMANDS)}")
    module, _, kind = COMMANDS[name].partition(".")
    return getattr(importlib.import_module(f"rayad.cli.{module}"), kind)


def usage() -> list[str]:
    """What `rayad --help` prints: every command with what it does."""
    lines = ["usage: rayad COMMAND [OPTIONS]", "", *(__doc__ or "").strip().splitlines(), ""]
    for name, class_path in COMMANDS.items():
        entry = f"  {name:<13} {_summary(*class_path.split('.'))}"
        lines += textwrap.wrap(entry, 118, subsequent_indent=" " * 16, break_on_hyphens=False)
    return [*lines, "", "rayad COMMAND --help explains the options of a command."]


def _summary(module: str, kind: str) -> str:
    """The docstring of a command, read from its source: to import it would take seconds."""
    source = ast.parse((Path(__file__).parent / f"{module}.py").read_text())
    definition = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == kind)
    return " ".join((ast.get_docstring(definition) or "").split())


def _code(argv: list[str]) -> int | str | None:
    """The exit code of a command, however it ends."""
    try:
        os.umask(local.umask())
        _keep_torch_cache()
        return run(argv)
    except OptionError as error:
        say(f"rayad: {error}", sys.stderr)
        return 2
    except ModuleNotFoundError as error:  # of what a command needs before its output is copied
        return _lacks(error, argv[0])
    except SystemExit as end:  # tyro has answered --help, or said what is wrong
        return end.code
    except KeyboardInterrupt:  # again, while it ended
        return STOPPED


def _lacks(error: ModuleNotFoundError, name: str) -> int:
    """Say which package this Python lacks, and what to do; the error itself where it is another Python that lacks it.

    It is one of an extra of rayad, or this is not the Python that has rayad's packages.
    """
    module = (error.name or "").partition(".")[0]
    if not module or _is_there(module):
        raise error
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), "")
    advice = (
        f"{name} needs {module}, which is not installed: pip install 'rayad[{extra}]'"
        if extra
        else f"{module} is not installed in {sys.executable}: use the Python of rayad's own environment; a job of Ray "
        "names it by its path, ray job submit ... -- /path/to/.venv/bin/python jobs/..."
    )
    say(f"rayad: {advice}", sys.stderr)
    return 2


def _is_there(module: str) -> bool:
    """Whether this Python has the package."""
    with suppress(ModuleNotFoundError):
        return importlib.util.find_spec(module) is not None
    return False


def _keep_torch_cache() -> None:
    """Let torch keep its cache in the user's: it would make a temporary folder, which stays after a kill."""
    with suppress(OSError):  # a home that cannot be written
        folder = cache() / "torch"
        folder.mkdir(exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def _interrupt(received: list[int], number: int, frame: FrameType | None) -> None:
    """As Ctrl-C: Ray's waiting calls let a KeyboardInterrupt through, but make of SystemExit an end without a word."""
    received.append(number)
    raise KeyboardInterrupt


def _streams() -> list[io.TextIOWrapper]:
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]


def _is_closed(stream: io.TextIOWrapper) -> bool:
    """Whether a stream is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(argv: list[str]) -> int:
    from rayad import bounds
    from rayad.imaging import plausibility
    from rayad.private import given, keep_private

    try:
        subcommand = _parsed(argv)
        if not given(getattr(subcommand, "address", "")):
            keep_private()
        bounds.use(getattr(subcommand, "bounds", bounds.current()))
        plausibility.use(getattr(subcommand, "force", ()))
        subcommand()
    except RayadError as error:
        say(f"rayad: {error}", sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    except ModuleNotFoundError as error:
        return _lacks(error, argv[0])
    except KeyboardInterrupt:
        say(GOES_ON, sys.stderr)
        return STOPPED
    except SystemExit as end:
        if end.code != signal.SIGTERM:  # Ray's answer to it, while it starts
            raise
        say(GOES_ON, sys.stderr)
        return TERMINATED
    return 0


def _parsed(argv: list[str]) -> Command:
    """The command with its options; OptionError where a number is none that the option can have."""
    import tyro

    from rayad import options

    name, *words = argv
    kind, error_output = command(name), io.StringIO()
    try:
        with redirect_stderr(error_output), writable():
            subcommand = tyro.cli(kind, args=words, prog=f"rayad {name}")
    except SystemExit:
        for line in error_output.getvalue().splitlines():
            say(line, sys.stderr)
        raise
    options.check(subcommand, lambda option: f"--{option.replace('_', '-')}")
    return subcommand
