"""`python -m lanmirror_cache`."""

import sys

from lanmirror_cache.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
