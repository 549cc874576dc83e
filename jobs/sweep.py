"""A search for the best settings, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/sweep.py ...

The options are those of `rayad sweep`.
"""

import sys

from rayad.cli import main

main(["sweep", *sys.argv[1:]])
