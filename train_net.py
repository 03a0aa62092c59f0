#!/usr/bin/env python
"""Train and evaluate; same as ``resobj-d2 train``, kept for users of Detectron2's layout.

python train_net.py --config-file configs/....yaml [--num-gpus N] [--resume] [KEY VALUE ...]
python train_net.py --config-file configs/....yaml --eval-only MODEL.WEIGHTS model_final.pth
"""

import sys

from resobj_d2.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
