"""`python3 -m bench.conda_cache`, in the folder of the project."""

import sys

from bench.common.launch import start

if __name__ == "__main__":
    sys.exit(start("bench.conda_cache"))
