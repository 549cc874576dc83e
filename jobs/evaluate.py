"""Detectors on a labelled data set, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/evaluate.py ...

The options are those of `rayad evaluate`.
"""

import sys

from rayad.cli import main

main(["evaluate", *sys.argv[1:]])
