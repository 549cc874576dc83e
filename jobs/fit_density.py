"""A trained detector's latents to a detector that scores by likelihood, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/fit_density.py ...

The options are those of `rayad fit-density`.
"""

import sys

from rayad.cli import main

main(["fit-density", *sys.argv[1:]])
