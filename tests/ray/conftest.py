"""One Ray for the tests of this folder that follow each other, listening on the loopback alone."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from rayad.private import keep_private

keep_private()

running = ExitStack()


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> None:
    """A cluster of these tests alone, with more logical CPUs than cores."""
    import ray

    from rayad.on_ray.cluster import cluster

    if not ray.is_initialized():
        running.enter_context(cluster())


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Tests of other folders start a Ray of their own."""
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        running.close()
