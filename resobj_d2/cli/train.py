"""Train and evaluate, as Detectron2's own tools/train_net.py does."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence

import torch
from detectron2.utils import comm

from resobj_d2.command import (
    CommandParser,
    add_config_option,
    add_import_option,
    add_weights_option,
    one_line_per_process,
    with_weights,
)
from resobj_d2.config import load_config
from resobj_d2.config.zoo import find_config
from resobj_d2.engine import Trainer, evaluate, run_setup
from resobj_d2.engine.commands import resume_command
from resobj_d2.launch import launch, place_from_environment, was_restarted
from resobj_d2.process import start_log

__all__ = ["main"]

logger = logging.getLogger(__name__)


@one_line_per_process
def _run(args) -> None:
    """In each process."""
    cfg = _load(args)
    run_setup(cfg, args)
    if args.eval_only:
        _report(cfg, evaluate(cfg, resume=args.resume))
        return
    trainer = Trainer(cfg, how_to_resume=resume_command())
    # torchrun --max-restarts and SLURM's --requeue start the same command again.
    if cfg.TEST.SAMPLE_PICTURES and comm.is_main_process():
        from resobj_d2.report.samples import SampleHook

        trainer.register_hooks([SampleHook(cfg)])
    trainer.resume_or_load(resume=args.resume or was_restarted())
    _report(cfg, trainer.train())


def _report(cfg, results: Mapping | None) -> None:
    """After an evaluation, on the main process."""
    if results and comm.is_main_process():
        try:
            from resobj_d2.report.automatic import report_evaluation  # which imports matplotlib
        except ImportError as error:  # the package may have changed since a long training began
            logger.warning("the report was not written: %s", error)
            return
        for path in report_evaluation(cfg):
            logger.info("%-17s%s", "report", path)


def _load(args):
    cfg = load_config(
        args.config_file, args.opts, training=not args.eval_only, imports=args.imports
    )
    if not (args.config_file or (cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN)):
        raise ValueError(
            "there is no configuration: give --config-file FILE, or a NAME that "
            "`resobj-d2 configs` lists"
        )
    return cfg


def _parser(prog: str, epilog: str) -> argparse.ArgumentParser:
    """Detectron2's arguments, in words that are true here."""
    parser = CommandParser(
        prog=prog, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    evaluates = prog.endswith(" eval")
    add = parser.add_argument
    add_config_option(parser, required=False)
    add_weights_option(parser)
    resumed = "go on from the last checkpoint of OUTPUT_DIR"
    if evaluates:
        resumed = "evaluate the last checkpoint of OUTPUT_DIR, not MODEL.WEIGHTS"
    add("--resume", action="store_true", help=resumed)
    what = argparse.SUPPRESS if evaluates else "evaluate MODEL.WEIGHTS and do not train"
    add("--eval-only", action="store_true", help=what)
    add("--num-gpus", type=int, default=1, metavar="N", help="processes of this machine, one a GPU")
    add("--num-machines", type=int, default=1, metavar="N", help="machines in all (default 1)")
    add("--machine-rank", type=int, default=0, metavar="N", help="of this machine, from 0")
    add("--dist-url", default="auto", metavar="URL", help="where machines meet: tcp://HOST:PORT")
    add_import_option(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the configuration")
    return parser


def _check_number(processes: int) -> None:
    """Tell at once what each process would find out for itself, much later.

    Raises:
        ValueError: there are GPUs, but not as many as processes.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and processes > gpus:
        raise ValueError(f"--num-gpus {processes}: this machine has {gpus} that can be used")
    if not gpus:
        logger.warning(
            "--num-gpus %d, but no GPU can be used: %d processes share the %d CPU cores, and it "
            "takes minutes until they have started",
            processes,
            processes,
            os.cpu_count() or 1,
        )


def main(argv: Sequence[str], *, prog: str = "resobj-d2 train", examples: str | None = None) -> int:
    """The command; takes Detectron2's arguments."""
    parser = _parser(prog, (examples or _EXAMPLES).format(prog=prog))
    args = parser.parse_args(argv)
    if args.weights and args.resume and args.eval_only:
        parser.error("--resume evaluates the last checkpoint of OUTPUT_DIR: leave out --weights")
    args.opts = with_weights(args.opts, args.weights)
    start_log(file_follows=True)
    if args.config_file:
        args.config_file = str(find_config(args.config_file))  # Detectron2 copies it to the log
    if args.num_gpus > 1:
        _check_number(args.num_gpus)
        _load(args)  # a mistake is told once, not by every process
    several = args.num_gpus * args.num_machines > 1 or place_from_environment() is not None
    launch(
        _run if several else _run.__wrapped__,
        num_processes=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
    return 0


_EXAMPLES = """
A configuration is a file, or a name that `resobj-d2 configs` lists. Examples:

  {prog} --config-file NAME --num-gpus 8
  {prog} --config-file NAME --num-gpus 2 SOLVER.IMS_PER_BATCH 4 SOLVER.BASE_LR 0.0025
  {prog} --config-file NAME --resume
  {prog} --config-file NAME --eval-only --weights output/.../model_final.pth
  {prog} --config-file NAME --num-gpus 8 --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT
  torchrun --nproc-per-node 8 --max-restarts 3 -m resobj_d2 train --config-file NAME
  srun --ntasks-per-node 8 {prog} --config-file NAME
"""
