"""Residual Objectness in a few minutes on a CPU: generate scenes, train, evaluate, draw.

    python -m resobj_d2.demo [--quick] [--output output/demo]

Everything is trained from scratch. The exit code is 1 where the AP stays below a floor that an
untrained detector (AP 0.0) does not come near: the demo is also a test.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup

from resobj_d2.command import run_command
from resobj_d2.config import load_config
from resobj_d2.config.zoo import find_config
from resobj_d2.engine import Trainer

from .inference.predict import draw_samples
from .inference.predictor import Predictor

__all__ = ["main"]


@dataclass(frozen=True)
class Budget:
    """How long to train, the AP50 that must come of it, and the lowest score that is drawn."""

    iterations: int
    floor: float
    drawn: float


FULL = Budget(iterations=900, floor=15.0, drawn=0.3)
QUICK = Budget(iterations=200, floor=3.0, drawn=0.1)  # few scores reach .3 by then
CONFIG = "small/scenes_retinanet_resobj_t2.yaml"
PICTURES = 6
MARKER = ".resobj_d2_demo"  # in a folder that a demo may clear


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    arguments = _parse_arguments(argv)
    arguments.config_file = str(find_config(arguments.config_file))
    budget = QUICK if arguments.quick else FULL
    output = Path(arguments.output)
    _remove_former_run(output)
    start = time.monotonic()
    options = [
        "SOLVER.MAX_ITER", str(budget.iterations),
        "SOLVER.STEPS", f"({budget.iterations * 3 // 4}, {budget.iterations * 9 // 10})",
        "OUTPUT_DIR", str(output),
    ]  # fmt: skip
    cfg = load_config(arguments.config_file, options)
    default_setup(cfg, arguments)
    logging.getLogger("detectron2").info("Training for %d iterations", budget.iterations)
    trainer = Trainer(cfg)
    results = trainer.train()["bbox"]
    files = [output / "detections.png", output / "steps.png", output / "objectness_curves.png"]
    _draw(cfg, trainer.model, files, budget.drawn)
    return _report(results, budget, files, time.monotonic() - start)


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="resobj-d2 demo",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--config-file",
        default=CONFIG,
        help="what to train",
    )
    parser.add_argument("--output", default="output/demo", help="folder for everything it writes")
    parser.add_argument("--quick", action="store_true", help="a shorter run with a lower floor")
    return parser.parse_args(argv)


def _remove_former_run(output: Path) -> None:
    """Logs and checkpoints are appended to and resumed from; a demo starts anew.

    Raises:
        FileExistsError: the folder holds something else than a demo.
    """
    marker = output / MARKER
    if output.exists() and any(output.iterdir()) and not marker.exists():
        raise FileExistsError(
            f"{output.absolute()} holds files that no demo wrote; name another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for name in ("metrics.json", "last_checkpoint", "log.txt"):
        (output / name).unlink(missing_ok=True)
    for checkpoint in output.glob("model_*.pth"):
        checkpoint.unlink()


def _draw(cfg, model, files: list[Path], lowest_score: float) -> None:
    detections, steps, _ = files
    records = [r for r in DatasetCatalog.get(cfg.DATASETS.TEST[0]) if len(r["annotations"]) > 2]
    predictor = Predictor(cfg, model)
    draw = functools.partial(draw_samples, predictor, confidence_threshold=lowest_score)
    draw(records[:PICTURES], detections, samples_per_row=3)
    draw(records[: PICTURES // 2], steps, steps=True)


def _report(results: dict, budget: Budget, files: list[Path], seconds: float) -> int:
    print(f"\nResidual Objectness, {budget.iterations} iterations, {seconds / 60:.1f} minutes:")
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        print(f"  {name:5s} {results[name]:5.1f}")
    print(f"Pictures, boxes of a score of at least {budget.drawn:g}:")
    for file in files:
        print(f"  {file}")
    if not results["AP50"] >= budget.floor:
        print(f"error: AP50 is {results['AP50']:.1f}, the demo asks for {budget.floor}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
