"""``python -m resobj_d2``, the same as ``resobj-d2``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
