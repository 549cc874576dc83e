"""On a Ray that believes in a GPU: CPUs prepare ahead of the processes that take it, and nothing else changes."""

import json
import subprocess
import sys

SCRIPT = """
import json, os, signal
import ray
from rayad.private import keep_private
keep_private()
from rayad.errors import ImageError
from rayad.on_ray.cluster import CORES, QUIET, quiet_data
from rayad.on_ray.pool import WORTH_LOADING, OnRay
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
        value, pid = prepared() if prepared else self.prepare(self.power, item)
        return value**self.power, pid != os.getpid(), os.getpid()


class Deadly(Square):
    def __call__(self, item, prepared=None):
        if item == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return item


def results(pool, items):
    return list(pool.map(Square, items, "squares", (2,)))


ray.init(address="local", num_cpus=4, num_gpus=2, resources={CORES: 2}, include_dashboard=False, **QUIET)
quiet_data()
items = [number for number in range(24) if number != 5]
pools = {"here": Here(), "cpus": OnRay(Workers(1)), "gpu": OnRay(Workers(1, gpu=1))}
answer = {name: results(pool, items) for name, pool in pools.items()}
answer["few"] = results(pools["gpu"], range(WORTH_LOADING))
answer["lost"] = list(pools["gpu"].map(Deadly, items, "items", (2,), lambda why, item: [item, why]))
try:
    results(pools["gpu"], range(8))
except ImageError as error:
    answer["error"] = str(error)
print(json.dumps(answer))
"""


def test_cpus_prepare_what_gpus_compute(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answer = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))  # Ray says more
    squares = [(number + 1) ** 2 for number in range(24) if number != 5]
    lost, said = answer.pop("lost"), answer.pop("error")
    values = {name: [row[0] for row in rows] for name, rows in answer.items()}
    assert values == {"here": squares, "cpus": squares, "gpu": squares, "few": squares[:4]}
    apart = {name: {row[1] for row in rows} for name, rows in answer.items()}
    assert apart == {"here": {False}, "cpus": {False}, "gpu": {True}, "few": {True}}
    assert len({row[2] for row in answer["gpu"]}) == 2  # an actor a GPU
    assert len({row[2] for row in answer["few"]}) == 1  # for so few one is not worth its start
    assert said == "the file ends early"
    others = [number for number in range(24) if number not in (5, 9)]  # 9 ends its process and takes none along
    assert [row for row in lost if isinstance(row, int)] == others
    assert [row for row in lost if not isinstance(row, int)] == [[9, "the process that worked on it ended, 4 times"]]
