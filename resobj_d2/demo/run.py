"""The demo itself: time this machine, train, evaluate, draw."""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
import time
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage

from resobj_d2.config import load_config
from resobj_d2.config.zoo import find_config
from resobj_d2.engine import Trainer, run_setup
from resobj_d2.inference.predict import draw_samples
from resobj_d2.inference.predictor import Predictor
from resobj_d2.process import counted, hold_folder
from resobj_d2.report.automatic import report_evaluation

from .budget import Plan, plan_for_iterations, plan_for_time

__all__ = ["run_demo"]

PICTURES = 6
MARKER = ".resobj_d2_demo"  # marks a folder that a demo may clear
WARMUP_ITERATIONS, TIMED_ITERATIONS = 3, 8

logger = logging.getLogger(__name__)


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the demo as the command line says; returns the exit status."""
    start = time.monotonic()
    arguments.config_file = str(find_config(arguments.config_file))  # it is copied to the log
    output = Path(arguments.output)
    _remove_former_run(output)
    cfg = load_config(arguments.config_file, ["OUTPUT_DIR", str(output)])
    logger.info(
        "This demo trains a detector with Residual Objectness %s on generated pictures, evaluates "
        "it and draws what it finds.",
        "on a pretrained network" if _is_pretrained(cfg) else "from scratch",
    )
    run_setup(cfg, arguments)
    plan = _make_plan(cfg, arguments, start)
    cfg = _with_length(cfg, plan.iterations)
    run_setup(cfg, arguments)  # records the length; timing does not affect the seed
    trainer = Trainer(cfg, how_to_resume="the demo always starts from scratch")
    results = trainer.train()["bbox"]
    pictures = _draw(cfg, trainer.model, output, plan.drawn)
    return _report(results, plan, pictures, report_evaluation(cfg), time.monotonic() - start)


def _make_plan(cfg, arguments: argparse.Namespace, start: float) -> Plan:
    if arguments.iterations is not None:
        plan = plan_for_iterations(arguments.iterations, pretrained=_is_pretrained(cfg))
        text = f"Training for {counted(plan.iterations, 'iteration')}, as requested."
    else:
        logger.info("Timing %d iterations to see how many fit ...", TIMED_ITERATIONS)
        seconds = _seconds_per_iteration(cfg)
        plan, text = plan_for_time(
            minutes=arguments.minutes,
            elapsed=time.monotonic() - start,
            seconds_per_iteration=seconds,
            pretrained=_is_pretrained(cfg),
        )
    logger.info("%s AP50 must reach %g.\n", text, plan.floor)
    return plan


def _is_pretrained(cfg) -> bool:
    return bool(cfg.MODEL.TIMM.WEIGHTS)


def _seconds_per_iteration(cfg) -> float:
    """The median of a few iterations on a model that is thrown away."""
    model = Trainer.build_model(cfg)
    trainer = SimpleTrainer(
        model, Trainer.build_train_loader(cfg), Trainer.build_optimizer(cfg, model)
    )
    seconds = []
    with EventStorage():
        for _ in range(WARMUP_ITERATIONS + TIMED_ITERATIONS):
            start = time.perf_counter()
            trainer.run_step()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARMUP_ITERATIONS:])


def _with_length(cfg, iterations: int):
    """Decay the learning rate at 3/4 and 9/10 of training; warm up for at most half of it."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.STEPS = tuple(sorted({iterations * 3 // 4, iterations * 9 // 10} - {0}))
    cfg.SOLVER.WARMUP_ITERS = min(cfg.SOLVER.WARMUP_ITERS, iterations // 2)
    cfg.freeze()
    return cfg


def _remove_former_run(output: Path) -> None:
    """Removes old logs and checkpoints, which a run would append to or resume from.

    Raises:
        FileExistsError: the folder contains something other than a demo.
    """
    marker = output / MARKER
    if output.exists() and any(output.iterdir()) and not marker.exists():
        raise FileExistsError(
            f"{output.absolute()} has files that are not from a demo; choose another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    hold_folder(output)
    marker.touch()
    for name in ("metrics.json", "last_checkpoint", "log.txt"):
        (output / name).unlink(missing_ok=True)
    for checkpoint in output.glob("model_*.pth"):
        checkpoint.unlink()


def _draw(cfg, model, output: Path, lowest_score: float) -> list[Path]:
    """Pictures of detections next to the ground truth, and of the detections after each step."""
    detections, steps = output / "detections.png", output / "steps.png"
    records = [r for r in DatasetCatalog.get(cfg.DATASETS.TEST[0]) if len(r["annotations"]) > 2]
    predictor = Predictor(cfg, model)
    draw = functools.partial(draw_samples, predictor, confidence_threshold=lowest_score)
    draw(records[:PICTURES], detections, samples_per_row=3)
    draw(records[: PICTURES // 2], steps, steps=True)
    return [detections, steps]


def _report(
    results: dict, plan: Plan, pictures: list[Path], reports: list[Path], seconds: float
) -> int:
    logger.info("\nPictures of boxes with a score of at least %g:", plan.drawn)
    for picture in pictures:
        logger.info("  %s", picture)
    for report in reports:
        logger.info("What it does well and loses by: %s", report)
    outcome = f"AP50 {results['AP50']:.1f} after {counted(plan.iterations, 'iteration')}"
    if not results["AP50"] >= plan.floor:
        logger.error("the demo failed: %s, but it must reach %g", outcome, plan.floor)
        return 1
    logger.info("The demo passed in %.1f minutes: %s.", seconds / 60, outcome)
    return 0
