"""``python -m dp4tl_fast.selection``."""

import sys

from dp4tl_fast.selection import main

if __name__ == "__main__":
    sys.exit(main())
