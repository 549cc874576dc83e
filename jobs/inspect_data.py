"""What a data set holds, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/inspect_data.py ...

The options are those of `rayad inspect`.
"""

import sys

from rayad.cli import main

main(["inspect", *sys.argv[1:]])
