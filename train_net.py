#!/usr/bin/env python
"""Train and evaluate, as Detectron2's own tools/train_net.py does.

python train_net.py --config-file configs/....yaml [--num-gpus N] [--resume] [KEY VALUE ...]
python train_net.py --config-file configs/....yaml --eval-only MODEL.WEIGHTS model_final.pth
"""

from detectron2.engine import default_argument_parser, default_setup

from resobj_d2.compat import launch
from resobj_d2.config import load_config
from resobj_d2.engine import Trainer, evaluate


def main(args):
    cfg = load_config(args.config_file, args.opts, training=not args.eval_only)
    default_setup(cfg, args)
    if args.eval_only:
        return evaluate(cfg, resume=args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    parser = default_argument_parser()
    args = parser.parse_args()
    # Detectron2's default is one port per user, which two runs on a machine would share.
    chosen = args.num_machines > 1 or args.dist_url != parser.get_default("dist_url")
    launch(
        main,
        num_processes=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url if chosen else "auto",
        args=(args,),
    )
