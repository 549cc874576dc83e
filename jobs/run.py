"""All stages of a recipe, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/run.py ...

The options are those of `rayad run`.
"""

import sys

from rayad.cli import main

main(["run", *sys.argv[1:]])
