"""The most memory that a command takes, with the processes that it starts, each for itself.

What the kernel keeps of a process's most memory, it takes over from the process that started it: pytest itself can
hold gigabytes by then. So a command is started by a shell, which holds next to nothing.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

_REPORT = """
import json, resource, sys
code = {code}
who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
print(json.dumps([code, sum(resource.getrusage(each).ru_maxrss * 1024 for each in who)]), file=sys.stderr)
"""


def python(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script of Python; its `ru_maxrss` is its own."""
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    return subprocess.run([*shell, sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)


def rayad(*words: str) -> tuple[int, str, int]:
    """Run a command of rayad: its exit code, what it printed, and the most bytes that it and its processes took."""
    done = python("from rayad import cli" + _REPORT.format(code="cli.run(sys.argv[1:])"), *words)
    code, most = json.loads(done.stderr.splitlines()[-1])
    return code, done.stdout, most


def now() -> int:
    """Bytes that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def of_tree(command: list[str], **environment: str) -> tuple[int, str, int]:
    """Run a command: its exit code, what it printed, and the most bytes that it and all below it took at once.

    What processes share counts once (PSS); looked at four times a second.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = psutil.Popen(command, env=os.environ | environment, stdout=output, stderr=output)
        most = 0
        while process.poll() is None:
            most = max(most, sum(map(_pss, _tree(process))))
            time.sleep(0.25)
        output.seek(0)
        return process.returncode, output.read(), most


def _tree(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def _pss(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.memory_full_info().pss
    return 0
