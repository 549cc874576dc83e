"""The only package that imports Ray: every stage on one laptop or a cluster."""

import ray
from ray._private.worker import global_worker

from rayad import storage

if global_worker.mode == ray.WORKER_MODE:
    storage.expect()  # the command that this worker works for has read it
