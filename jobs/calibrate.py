"""P-values for detectors, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/calibrate.py ...

The options are those of `rayad calibrate`.
"""

import sys

from rayad.cli import main

main(["calibrate", *sys.argv[1:]])
