"""A corpus to a trained detector, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/train.py ...

The options are those of `rayad train`.
"""

import sys

from rayad.cli import main

main(["train", *sys.argv[1:]])
