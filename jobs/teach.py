"""Detectors and a few labels to a taught one, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/teach.py ...

The options are those of `rayad teach`.
"""

import sys

from rayad.cli import main

main(["teach", *sys.argv[1:]])
