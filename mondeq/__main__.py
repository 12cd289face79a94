"""`python -m mondeq`, which is also what `torchrun -m mondeq` starts."""

import sys

from mondeq.cli import main

sys.exit(main())
