"""The only package that imports Ray: every stage on one laptop or a cluster."""

import sys

from rayad import storage

_worker = sys.modules.get("ray._private.worker")  # Ray itself is imported by the modules that need it
if _worker and _worker.global_worker.mode == _worker.WORKER_MODE:
    storage.expect()  # the command that this worker works for has read it
