"""Run as `python3 -m lanmirror_ops`."""

import sys

from .command import main

sys.exit(main())
