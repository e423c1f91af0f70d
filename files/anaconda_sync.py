#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "msgspec==0.22.0",
#   "pycurl==7.49.0",
#   "pyyaml==6.0.3",
#   "rich==15.0.0",
#   "zstandard==0.25.0",
# ]
# ///
"""Mirror Conda channels: fetch what the upstream's indexes name, verify it, then publish the indexes.

    anaconda_sync.py [sync|plan|verify|watch] --config FILE [--working-dir DIR] [--delete] [--only GLOB] [--jobs N]

The work is done by the package `lanmirror_sync` beside this file.
"""

import logging
import os
import sys

OLDEST = (3, 11)

if sys.version_info < OLDEST:
    sys.stderr.write(
        "anaconda_sync.py needs Python %d.%d or newer; this is Python %d.%d (%s)\n"  # noqa: UP031 - for the same
        % (OLDEST + sys.version_info[:2] + (sys.executable,))
    )
    sys.exit(2)

from lanmirror_sync.cli import main  # noqa: E402

if __name__ == "__main__":
    code = main(sys.argv[1:])
    # All is closed. To take the interpreter apart would take a tenth of the time of a run that finds nothing new.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
