"""On a Ray that believes in a GPU: CPUs prepare ahead of the processes that take it, and nothing else changes."""

import json
import subprocess
import sys

SCRIPT = """
import json, os
import ray
from rayad.private import keep_private
keep_private()
from rayad.errors import ImageError
from rayad.on_ray.cluster import CORES, QUIET, quiet_data
from rayad.on_ray.pool import OnRay
from rayad.pool import Here, Workers


class Square:
    def __init__(self, power):
        self.power = power

    @staticmethod
    def prepare(power, item):
        if item == 5:
            raise ImageError("the file ends early")
        return item + 1, os.getpid()

    def __call__(self, item, prepared=None):
        value, pid = prepared or self.prepare(self.power, item)
        return value**self.power, pid != os.getpid()


def results(pool, items):
    return list(pool.map(Square, items, "squares", (2,)))


ray.init(address="local", num_cpus=4, num_gpus=1, resources={CORES: 2}, include_dashboard=False, **QUIET)
quiet_data()
items = [number for number in range(24) if number != 5]
answer = {name: results(pool, items) for name, pool in {
    "here": Here(), "cpus": OnRay(Workers(1)), "gpu": OnRay(Workers(1, gpu=0.5)),
}.items()}
try:
    results(OnRay(Workers(1, gpu=0.5)), range(8))
except ImageError as error:
    answer["error"] = str(error)
print(json.dumps(answer))
"""


def test_cpus_prepare_what_gpus_compute(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    squares = [(number + 1) ** 2 for number in range(24) if number != 5]
    assert [value for value, _ in answer["here"]] == squares
    assert answer["cpus"] == answer["here"]
    assert answer["gpu"] == [[value, True] for value in squares]
    assert answer["error"] == "the file ends early"
