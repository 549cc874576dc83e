"""jobs/: a script for every command that runs on a cluster, all alike."""

import re
import sys
from pathlib import Path

from rayad import cli

SCRIPTS = sorted((Path(__file__).parents[2] / "jobs").glob("*.py"))


def command(script: Path) -> str:
    """The subcommand that a script runs."""
    (found,) = re.findall(r'^main\(\["([a-z-]+)", \*sys\.argv\[1:\]\]\)$', script.read_text(), re.MULTILINE)
    return found


def test_every_command_that_runs_on_a_cluster_has_its_script():
    commands = {name for name in cli.COMMANDS if "address" in cli.command(name).__dataclass_fields__}
    # `rayad demo` is `rayad run demo`; a service does not end as a job does, `serve deploy` starts it
    assert commands - {"demo", "serve"} <= {command(script) for script in SCRIPTS}


def test_a_script_names_itself_and_its_command():
    for script in SCRIPTS:
        text = script.read_text()
        assert f"-- python jobs/{script.name} ..." in text
        assert f"The options are those of `rayad {command(script)}`." in text


def test_no_script_hides_a_module_of_python():
    # the folder of a script comes first on its path: jobs/inspect.py would be what `import inspect` finds
    assert not {script.stem for script in SCRIPTS} & sys.stdlib_module_names
