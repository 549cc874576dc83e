"""Several detectors to one, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/combine.py ...

The options are those of `rayad combine`.
"""

import sys

from rayad.cli import main

main(["combine", *sys.argv[1:]])
