"""A detector whose scores are adjusted for the place, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/adjust.py ...

The options are those of `rayad adjust`.
"""

import sys

from rayad.cli import main

main(["adjust", *sys.argv[1:]])
