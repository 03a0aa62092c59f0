"""``python -m resobj_d2.demo``."""

import sys

from resobj_d2.command import run_command

from .command import main

if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
