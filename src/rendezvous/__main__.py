"""``python -m rendezvous``: the command ``rendezvous``."""

import sys

from rendezvous.cli import main

if __name__ == "__main__":
    sys.exit(main())
