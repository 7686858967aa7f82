"""`syne` and `python -m tools`: the one place where an error becomes an exit code."""

import sys

from tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
