"""Images to a patch corpus, as a Ray job.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/ingest.py ...

The options are those of `rayad ingest`.
"""

import sys

from rayad.cli import main

main(["ingest", *sys.argv[1:]])
