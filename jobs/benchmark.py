"""A recipe with several seeds, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/benchmark.py ...

The options are those of `rayad benchmark`.
"""

import sys

from rayad.cli import main

main(["benchmark", *sys.argv[1:]])
