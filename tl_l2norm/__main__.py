"""`python -m tl_l2norm`."""

import sys

from tl_l2norm.cli import main

if __name__ == "__main__":
    sys.exit(main())
