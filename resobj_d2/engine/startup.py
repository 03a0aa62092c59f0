"""What happens before a run: logs, seeds, and the record of what runs where."""

from __future__ import annotations

import logging
import os
from argparse import Namespace

import torch
from detectron2.config import CfgNode
from detectron2.engine import defaults
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import PathManager

from resobj_d2.launch import was_restarted
from resobj_d2.process import hold_folder, quiet_imports, replacing, start_log
from resobj_d2.process.console import FILE_ONLY, log_to_folder

from .earlier_run import refuse_earlier_run

__all__ = ["log_by_default", "make_output_folder", "run_setup"]

logger = logging.getLogger(__name__)


def run_setup(cfg: CfgNode, args: Namespace | None = None) -> None:
    """Detectron2's ``default_setup`` with a console that a person can follow.

    As there, the output folder is made, random numbers are seeded and cuDNN is told whether to
    benchmark. The environment, the command's arguments and the configuration go into ``log.txt``
    (``log.txt.rank<n>`` in further processes) and ``config.yaml``, and not to the console, which
    from now on shows what this package logs, and warnings. An evaluation leaves the ``config.yaml``
    of a training as it is and writes ``config_eval.yaml``. A training holds the folder
    (:func:`resobj_d2.process.hold_folder`) until :meth:`Trainer.train` or the process ends.

    Args:
        cfg: of :func:`resobj_d2.config.load_config`.
        args: of the command line, for the log; ``eval_only`` and ``resume`` are read. Without them
            it is for the :class:`Trainer` to refuse the folder of an earlier run.

    Raises:
        FileExistsError: a new training finds checkpoints of an earlier run in ``OUTPUT_DIR``.
        FolderInUse: another training writes to ``OUTPUT_DIR``.
    """
    quiet_imports()
    rank = comm.get_rank()
    eval_only = bool(getattr(args, "eval_only", False))
    goes_on = getattr(args, "resume", False) or was_restarted()
    if args is not None and not (eval_only or goes_on):
        refuse_earlier_run(cfg.OUTPUT_DIR, how_to_resume="add --resume")
    make_output_folder(cfg.OUTPUT_DIR)
    if not eval_only and comm.is_main_process():
        hold_folder(cfg.OUTPUT_DIR)
    log_to_folder(cfg.OUTPUT_DIR, rank=rank)
    _log_circumstances(cfg, args)
    if comm.is_main_process():
        _write_config(cfg, eval_only)
    # Each process its own, so that they do not load the same images.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not eval_only:
        # Its start-up costs more than it saves on the small and changing images of an evaluation.
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    precision = cfg.get("FLOAT32_PRECISION", "")  # upstream main alone has the key
    if precision:
        defaults._set_float32_precision(precision)


def log_by_default(folder: str = "") -> None:
    """Log as :func:`run_setup` does, unless whoever called has set up this package's logging.

    Args:
        folder: of ``log.txt``, for which messages are kept until it is named.
    """
    package = logging.getLogger("resobj_d2")
    ours = any(getattr(handler, "by_default", False) for handler in package.handlers)
    if not ours and package.isEnabledFor(logging.INFO):
        return
    quiet_imports()
    if folder:
        log_to_folder(folder, rank=comm.get_rank())
    else:
        start_log(rank=comm.get_rank())
    for handler in package.handlers:
        handler.by_default = True  # type: ignore[attr-defined]


def make_output_folder(path: str) -> None:
    """Make ``OUTPUT_DIR`` where it is missing.

    Raises:
        OSError: it cannot be made; the message names the key.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if os.path.isfile(path) else error.strerror
        raise OSError(f"OUTPUT_DIR {path} cannot be created: {reason}") from error


def _log_circumstances(cfg: CfgNode, args: Namespace | None) -> None:
    def log(text: str, *values: object) -> None:
        logger.info(text, *values, extra=FILE_ONLY)

    log("Rank of current process: %d. World size: %d", comm.get_rank(), comm.get_world_size())
    log("Environment info:\n%s", collect_env_info())
    if args is not None:
        log("Command line arguments: %s", args)
    config_file = getattr(args, "config_file", "")
    if config_file and os.path.isfile(config_file):
        with PathManager.open(config_file) as file:
            log("Contents of args.config_file=%s:\n%s", config_file, file.read())
    log("Running with full config:\n%s", cfg.dump())


def _write_config(cfg: CfgNode, eval_only: bool) -> None:
    path = os.path.join(cfg.OUTPUT_DIR, "config_eval.yaml" if eval_only else "config.yaml")
    with replacing(path) as file:
        file.write(cfg.dump())
    logger.info("Full config saved to %s", path, extra=FILE_ONLY)
