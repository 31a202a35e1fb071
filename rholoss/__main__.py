"""``python -m rholoss``, as the command ``rholoss``: see ``rholoss.cli``."""

import sys

from rholoss.cli import main

if __name__ == "__main__":
    sys.exit(main())
