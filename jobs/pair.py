"""A detector that scores a place given the other breast, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/pair.py ...

The options are those of `rayad pair`.
"""

import sys

from rayad.cli import main

main(["pair", *sys.argv[1:]])
