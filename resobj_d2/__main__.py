"""``python -m resobj_d2``, which is ``resobj-d2``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
