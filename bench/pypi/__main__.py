"""`python3 -m bench.pypi`, in the folder of the project."""

import sys

from bench.common.launch import start

if __name__ == "__main__":
    sys.exit(start("bench.pypi"))
