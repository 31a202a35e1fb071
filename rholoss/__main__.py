"""``python -m rholoss``: see ``rholoss.command``."""

import sys

from rholoss.command import main

if __name__ == "__main__":
    sys.exit(main())
