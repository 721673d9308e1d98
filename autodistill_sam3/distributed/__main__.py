"""A worker process: `python -m autodistill_sam3.distributed`, for the parent in `processes.py` alone."""

import sys

from autodistill_sam3.distributed.worker import main

if __name__ == "__main__":
    sys.exit(main())
