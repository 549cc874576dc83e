"""One Ray for the tests of this folder, listening on the loopback alone."""

import pytest

from rayad.private import keep_private

keep_private()


@pytest.fixture(scope="package", autouse=True)
def ray_cluster():
    """A cluster of these tests alone, with more logical CPUs than cores."""
    from rayad.on_ray.cluster import cluster

    with cluster():
        yield
