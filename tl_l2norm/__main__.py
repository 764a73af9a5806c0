"""`python -m tl_l2norm`."""

import sys

from tl_l2norm.cli import main

sys.exit(main())
