"""Images to heatmaps, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/heatmap.py ...

The options are those of `rayad heatmap`.
"""

import sys

from rayad.cli import main

main(["heatmap", *sys.argv[1:]])
