"""`python -m autodistill_sam3` is the command `autodistill-sam3`."""

import sys

from autodistill_sam3.cli import main

sys.exit(main())
