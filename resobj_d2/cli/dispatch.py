"""From ``resobj-d2 COMMAND ...`` to the module that runs it.

A new command is one row of :data:`COMMANDS` and a module with ``main(argv) -> int``. Nothing heavy
is imported before the command is known: ``resobj-d2 --help`` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from resobj_d2 import __version__
from resobj_d2.command import DEBUG, run_command
from resobj_d2.process import did_you_mean, quiet_imports

__all__ = ["COMMANDS", "Command", "main"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A row of the table.

    Attributes:
        name: what the user types.
        summary: one line of the list.
        module: of this package, relative to it; its ``main(argv)`` runs the command. "" for a
            group of commands.
        uses_operators: whether it starts with the line that says which operators run.
        log: whether messages and warnings stand among its output, which is for a person then.
        commands: of a group.
    """

    name: str
    summary: str
    module: str = ""
    uses_operators: bool = True
    log: bool = True
    commands: tuple[Command, ...] = ()


ANALYZE = (
    Command(
        name="dump",
        summary="one pass over a dataset, written down for the report and other analyses",
        module="analysis.dump",
    ),
    Command(
        name="cost",
        summary="parameters, FLOPs and forward time of configurations side by side",
        module="analysis.cost",
    ),
    Command(
        name="proposals",
        summary="average recall of an RPN's proposals",
        module="analysis.proposals",
    ),
    Command(
        name="errors",
        summary="what a detector loses by: kinds of errors with their dAP, confusions",
        module="analysis.errors",
        uses_operators=False,
    ),
    Command(
        name="breakdown",
        summary="AP by class, size, shape, crowding and IoU",
        module="analysis.breakdown",
        uses_operators=False,
    ),
    Command(
        name="thresholds",
        summary="the score threshold of each class: precision, recall, F1",
        module="analysis.thresholds",
        uses_operators=False,
    ),
    Command(
        name="calibration",
        summary="how often detections of each score are right",
        module="analysis.calibration",
        uses_operators=False,
    ),
    Command(
        name="worst",
        summary="the images and errors that cost most AP, drawn",
        module="analysis.worst",
        uses_operators=False,
    ),
    Command(
        name="compare",
        summary="runs side by side, with intervals of the differences",
        module="analysis.compare",
        uses_operators=False,
    ),
    Command(
        name="misalignment",
        summary="score against IoU, before and after NMS, from a dump",
        module="analysis.misalignment",
        uses_operators=False,
    ),
    Command(
        name="imbalance",
        summary="which anchors own the losses and gradients of a trained detector",
        module="analysis.imbalance",
    ),
    Command(
        name="sweep",
        summary="evaluate a trained detector under many settings of its scoring",
        module="analysis.sweep",
    ),
    Command(
        name="curves",
        summary="objectness of positives and negatives over a training",
        module="plots.objectness_curves",
        uses_operators=False,
    ),
)

DATA = (
    Command(
        name="check",
        summary="pictures, boxes, and whether a configuration's anchors fit them",
        module="inspection.command",
    ),
    Command(
        name="balance",
        summary="objects, their sizes and anchors, beside COCO's",
        module="inspection.balance",
        uses_operators=False,
    ),
    Command(
        name="convert",
        summary="write a dataset as COCO json, Pascal VOC, YOLO or CSV",
        module="inspection.convert_command",
        uses_operators=False,
    ),
)

COMMANDS = (
    # The summaries of training, evaluation and demo say which operators run.
    Command(name="train", summary="train a detector", module="cli.train", uses_operators=False),
    Command(
        name="eval",
        summary="evaluate a trained detector",
        module="cli.evaluate",
        uses_operators=False,
    ),
    Command(
        name="predict",
        summary="detections on image files: pictures and a json",
        module="inference.predict",
    ),
    Command(
        name="export",
        summary="a trained detector as one file, for programs without Detectron2",
        module="export.command",
    ),
    Command(
        name="demo",
        summary="train, evaluate and draw on generated scenes",
        module="demo",
        uses_operators=False,
    ),
    Command(
        name="configs",
        summary="list the configurations, print one",
        module="cli.configs",
        uses_operators=False,
        log=False,  # a yaml, mostly for a file
    ),
    Command(name="data", summary="check a dataset; convert it to another format", commands=DATA),
    Command(name="analyze", summary="dump, errors, sweep, cost, ...", commands=ANALYZE),
    Command(
        name="report",
        summary="a page that shows what is wrong with a detector",
        module="report.command",
        uses_operators=False,
    ),
    Command(
        name="watch",
        summary="a page that follows a training: losses, AP, detections",
        module="report.watch",
        uses_operators=False,
    ),
    Command(
        name="study",
        summary="methods x seeds x datasets, with intervals and differences",
        module="study.command",
        uses_operators=False,
    ),
    Command(
        name="doctor",
        summary="what is installed and native, and what to do about the rest",
        module="doctor",
        uses_operators=False,
    ),
    Command(
        name="bench",
        summary="measure the operators against their peers (in a checkout)",
        module="cli.bench",
        uses_operators=False,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``resobj-d2``; returns its exit status."""
    quiet_imports()  # before the imports that would warn
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _dispatch("resobj-d2", COMMANDS, arguments)


def _dispatch(prog: str, commands: tuple[Command, ...], arguments: list[str]) -> int:
    # --debug may also stand in front of the command.
    leading = arguments[:1] if set(arguments[:1]) & set(DEBUG) else []
    arguments = arguments[len(leading) :]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(prog, commands))
        return 0
    if arguments[0] == "--version":
        print(f"resobj_d2 {__version__}")
        return 0
    name, *rest = arguments
    command = next((c for c in commands if c.name == name), None)
    if command is None:
        names = [c.name for c in commands]
        most = 3 if any(x.startswith(name) for x in names) else 1
        hint = did_you_mean(name, names, most=most) or "."
        print(f"error: there is no command '{name}'{hint} See {prog} --help", file=sys.stderr)
        return 2
    if command.commands:
        return _dispatch(f"{prog} {name}", command.commands, leading + rest)

    def run(argv: list[str]) -> int | None:
        return importlib.import_module(f"resobj_d2.{command.module}").main(argv)

    return run_command(run, leading + rest, uses_operators=command.uses_operators, log=command.log)


def _help(prog: str, commands: tuple[Command, ...]) -> str:
    width = max(len(command.name) for command in commands)
    rows = [f"  {command.name:<{width}}  {command.summary}" for command in commands]
    return "\n".join(
        [
            f"usage: {prog} [--version] [--debug] COMMAND ...",
            "",
            *rows,
            "",
            f"{prog} COMMAND --help explains one. --debug shows where an error comes from.",
        ]
    )
