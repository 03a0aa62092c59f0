"""Detections on image files, videos and cameras: pictures and results.

    resobj-d2 predict --config-file NAME_OR_FILE.yaml --weights output/.../model_final.pth \\
        --input photos/ --output drawn/

For every image ``<name>.png`` shows the detections. With Residual Objectness ``<name>_steps.png``
shows them at each step (Figure 5 of Chen et al., "Residual Objectness for Imbalance Reduction").

``results.json`` holds every detection of every image in COCO's results format, whatever its score
(``PREDICT.SCORE_THRESH`` sets lowest ones by class), with the category ids of the first dataset of
``DATASETS.TEST``, else those that the checkpoint carries, else class numbers from 0. Image ids
count the input files from 1; ``images.json``, a COCO dataset without annotations, says which file
each one is and what the categories are called. To evaluate on a dataset use ``resobj-d2 eval``.

Of a video or a camera ``<name>.mp4`` shows the detections, and ``<name>.jsonl`` has a line for each
frame (:mod:`.predict_videos`).

Results are written as they come, to ``results.json.partial`` and ``images.json.partial``, which get
their names at the end: a run that is interrupted or fails keeps what it has. An image that cannot
be read, or whose picture cannot be written, is reported by name and does not end the run; the exit
status is then 1.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL.Image import Image

from resobj_d2.command import explain, is_users_mistake, run_command, wants_traceback
from resobj_d2.process import agreeing, counted

from .drawing import draw_annotations, draw_detections, grid, save_picture, step_title
from .json_list import JsonListWriter
from .output_names import distinct_names, keep_inputs
from .predict_options import WITHOUT_DATASETS, parser
from .predict_videos import predict_videos
from .predictor import ImageError, Predictor, load_prediction_config
from .videos import VIDEO_SUFFIXES, is_video

__all__ = [
    "PredictionFiles",
    "draw_samples",
    "find_images",
    "main",
    "predict_images",
]

logger = logging.getLogger("resobj_d2.inference.predict")  # also when run as __main__

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
PANEL_SIDE = 448  # longer side of each picture of a row of pictures


@dataclass(frozen=True)
class PredictionFiles:
    """What :func:`predict_images` did.

    Attributes:
        results, images: ``results.json`` and ``images.json``.
        pictures: the pictures written, ``_steps.png`` among them.
        failed: images that could not be used, with the reason.
        not_drawn: images whose picture could not be written, with the reason; the results have
            their detections.
    """

    results: Path
    images: Path
    pictures: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    not_drawn: dict[Path, str] = field(default_factory=dict)


def find_images(inputs: Sequence[str], *, videos: bool = False) -> list[Path]:
    """The image files that files, folders and glob patterns (``**`` for subfolders) name.

    Folders and patterns give files with the usual suffixes in alphabetical order. Each file occurs
    once.

    Args:
        inputs: what the user names.
        videos: patterns give videos too (:func:`.videos.is_video`), but folders do not.

    Raises:
        FileNotFoundError: one of ``inputs`` gives no image.
    """
    images: dict[Path, Path] = {}
    for text in inputs:
        if "://" in text:
            raise FileNotFoundError(f"{text} is not on this machine: download it first")
        path = Path(text).expanduser()
        if path.is_file():
            matches = [path]
        else:
            folder = path.is_dir()
            candidates = (
                path.iterdir() if folder else map(Path, glob.glob(str(path), recursive=True))
            )
            wanted = IMAGE_SUFFIXES | VIDEO_SUFFIXES if videos and not folder else IMAGE_SUFFIXES
            matches = sorted(p for p in candidates if p.suffix.lower() in wanted and p.is_file())
        if not matches:
            raise FileNotFoundError(_nothing_found(path))
        for match in matches:
            images.setdefault(match.resolve(), match)
    return list(images.values())


def predict_images(
    predictor: Predictor,
    paths: Sequence[str | os.PathLike],
    output_dir: str | os.PathLike,
    *,
    confidence_threshold: float = 0.3,
    draw_limit: int = 100,
) -> PredictionFiles:
    """Write pictures, ``results.json`` and ``images.json`` for image files.

    An image that cannot be read or drawn is reported in a warning and does not end the run. The
    results are written as they come; where an exception ends the run the files hold those so far.

    Args:
        predictor: the detector.
        paths: image files.
        output_dir: folder to write to, made where missing.
        confidence_threshold, draw_limit: lowest score and highest number of the boxes drawn; the
            results hold all of them.

    Raises:
        FileExistsError: a picture would replace one of ``paths``.
        OSError: the results cannot be written.
    """
    paths = [Path(path) for path in paths]
    output = Path(output_dir)
    names = distinct_names([path.stem for path in paths])
    keep_inputs(paths, [output / f"{name}{end}.png" for name in names for end in ("", "_steps")])
    output.mkdir(parents=True, exist_ok=True)
    files = PredictionFiles(output / "results.json", output / "images.json")
    limits = {"confidence_threshold": confidence_threshold, "draw_limit": draw_limit}
    dataset = {"info": {}, "annotations": [], "categories": predictor.categories()}
    best_scores: list[float] = []
    with (
        JsonListWriter(files.results) as results,
        JsonListWriter(files.images, around=dataset, key="images") as images,
    ):
        for number, (path, name) in enumerate(zip(paths, names, strict=True), start=1):
            progress = f"{number}/{len(paths)} {path}"
            try:
                image, steps = predictor.detect(path)
            except (ImageError, torch.OutOfMemoryError) as error:
                files.failed[path] = str(error) if str(path) in str(error) else f"{path}: {error}"
                logger.warning("%s is left out: %s", progress, str(error).removeprefix(f"{path}: "))
                continue
            results.add(_coco_results(predictor, steps[-1], number))
            images.add([_coco_image(number, path, image)])
            try:
                for picture in _save_pictures(image, steps, predictor, output / name, **limits):
                    files.pictures.append(picture)
            except OSError as error:
                files.not_drawn[path] = f"{path}: its picture cannot be written: {error}"
                logger.warning("%s is not drawn: %s", progress, error)
            scores = steps[-1].scores
            best_scores.append(max(scores.tolist(), default=0.0))
            shown = int((scores >= confidence_threshold).sum())
            found = counted(shown, "detection")
            logger.info("%s: %s of at least %g", progress, found, confidence_threshold)
    _warn_if_nothing_is_drawn(best_scores, confidence_threshold)
    return files


def draw_samples(
    predictor: Predictor,
    records: Sequence[dict],
    output_file: str | os.PathLike,
    *,
    confidence_threshold: float = 0.3,
    steps: bool = False,
    samples_per_row: int = 1,
    side: int = PANEL_SIDE,
) -> Path:
    """Draw samples of a dataset on one sheet: ground truth beside detections.

    Args:
        predictor: the detector.
        records: in Detectron2's standard form, as ``DatasetCatalog.get`` gives them; not empty.
        output_file: picture to write.
        confidence_threshold: lowest score that is drawn.
        steps: show the detections at every step instead of the last alone.
        samples_per_row: how many samples stand side by side.
        side: longer side of each picture in pixels.

    Raises:
        ImageError: an image cannot be read.
    """
    steps = steps and predictor.num_steps > 0
    names = predictor.class_names
    samples = []
    for record in records:
        image, detections = predictor.detect(record["file_name"])
        detections = detections if steps else detections[-1:]
        truth = draw_annotations(image, record.get("annotations", []), names, side=side)
        drawn = _draw_steps(
            image, detections, names, confidence_threshold=confidence_threshold, side=side
        )
        samples.append([truth, *drawn])
    last = [step_title(t) for t in range(predictor.num_steps + 1)] if steps else ["detections"]
    rows = [
        sum(samples[i : i + samples_per_row], []) for i in range(0, len(samples), samples_per_row)
    ]
    titles = ["ground truth", *last] * min(samples_per_row, len(samples))
    path = Path(output_file)
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    save_picture(grid(rows, titles), path)
    return path


def _save_pictures(
    image: np.ndarray, steps: list[Instances], predictor: Predictor, path: Path, **limits
) -> Iterator[Path]:
    """Write ``<path>.png`` and, with several steps, ``<path>_steps.png``; each when it is there."""
    names = predictor.class_names
    picture = path.with_name(f"{path.name}.png")
    save_picture(draw_detections(image, steps[-1], names, **limits), picture)
    yield picture
    if len(steps) > 1:
        picture = path.with_name(f"{path.name}_steps.png")
        titles = [step_title(t) for t in range(len(steps))]
        save_picture(grid([_draw_steps(image, steps, names, **limits)], titles), picture)
        yield picture


def _warn_if_nothing_is_drawn(best_scores: Sequence[float], threshold: float) -> None:
    if best_scores and max(best_scores) < threshold:
        text = "nothing is drawn: the best score is %.3g, the confidence threshold %g"
        logger.warning(text, max(best_scores), threshold)


def _draw_steps(
    image: np.ndarray,
    steps: list[Instances],
    names: Sequence[str],
    *,
    side: int = PANEL_SIDE,
    **limits,
) -> list[Image]:
    return [draw_detections(image, step, names, side=side, **limits) for step in steps]


def _coco_results(predictor: Predictor, detections: Instances, image_id: int) -> list[dict]:
    results = instances_to_coco_json(detections, image_id)
    for item in results:
        item["category_id"] = predictor.category_id(item["category_id"])
    return results


def _coco_image(number: int, path: Path, image: np.ndarray) -> dict:
    height, width = image.shape[:2]
    return {"id": number, "file_name": str(path), "width": width, "height": height}


def _nothing_found(path: Path) -> str:
    if re.fullmatch(r"[A-Z_]+(\.[A-Z0-9_]+)+", str(path)):
        return (
            f"'{path}' was read as an input image; KEY VALUE pairs must follow another option, "
            "for instance --input ... --output ... KEY VALUE"
        )
    suffixes = " ".join(sorted(IMAGE_SUFFIXES))
    if path.is_dir():
        return (
            f"no image in the folder {path.absolute()}; looked for {suffixes}. For videos, and for "
            f"images in its subfolders, give the pattern '{path}/**'"
        )
    return (
        f"no image found: {path.absolute()} is not a file, not a folder and not a pattern that "
        "matches one"
    )


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Returns:
        Its exit code: 0, 1 where an input was left out, in part or not drawn, 2 for wrong input,
        130 where it was interrupted.
    """
    options = parser().parse_args(arguments)
    try:
        paths = find_images(options.input, videos=True) if options.camera is None else []
    except OSError as error:
        return _complain(str(error))
    if options.frames is not None and paths and not any(map(is_video, paths)):
        return _complain("--frames is for videos and cameras, and --input names none")
    if os.path.isfile(options.output):
        return _complain(f"--output {options.output} is a file: give the name of a folder")
    try:
        cfg = load_prediction_config(
            options.config_file, options.overrides, imports=options.imports
        )
        predictor = Predictor(cfg)
    except Exception as error:
        if wants_traceback() or not is_users_mistake(error):
            raise
        message = explain(error)
        hint = f". {WITHOUT_DATASETS}" if "ataset" in message else ""
        return _complain(message.removesuffix(".") + hint if hint else message)
    try:
        return _run(predictor, paths, options, _drawn_from(options, cfg))
    except Exception as error:
        if wants_traceback() or not is_users_mistake(error):
            raise
        return _complain(explain(error))
    except KeyboardInterrupt:
        folder = os.path.abspath(options.output)
        print(f"interrupted: {folder} has the results so far", file=sys.stderr)
        return 130


def _drawn_from(options: argparse.Namespace, cfg: CfgNode) -> float:
    """The lowest score of a box that is drawn."""
    lowest = options.confidence_threshold
    return lowest if lowest is not None else 0.0 if cfg.PREDICT.SCORE_THRESH else 0.3


def _run(
    predictor: Predictor, paths: Sequence[Path], options: argparse.Namespace, lowest: float
) -> int:
    """Predict on all inputs and print what there is; the exit code."""
    folder = os.path.abspath(options.output)
    limits = {"confidence_threshold": lowest, "draw_limit": options.draw_limit}
    pictures = [path for path in paths if not is_video(path)]
    videos: list[Path | int] = [path for path in paths if is_video(path)]
    if options.camera is not None:
        videos = [options.camera]
    status = 0
    if pictures:
        files = predict_images(predictor, pictures, folder, **limits)
        written = counted(len(files.pictures), "picture")
        print(f"{written}, results.json and images.json are in {folder}")
        were, are = agreeing(len(files.failed), "were"), agreeing(len(files.not_drawn), "are")
        fates = {
            f"{were} left out": files.failed,
            f"{are} in the results but not drawn": files.not_drawn,
        }
        status = _report_failures(counted(len(pictures), "image"), fates)
    if videos:
        made = predict_videos(predictor, videos, folder, max_frames=options.frames, **limits)
        for path in made.written:
            print(path)
        fates = {"could not be read, or not to the end": made.failed}
        status = max(status, _report_failures(counted(len(videos), "video"), fates))
    return status


def _report_failures(inputs: str, fates: Mapping[str, Mapping]) -> int:
    """Print what went wrong with how many inputs, by input; the exit code."""
    for fate, reasons in fates.items():
        if reasons:
            print(f"{len(reasons)} of {inputs} {fate}:", file=sys.stderr)
            for reason in reasons.values():
                print(f"  {reason}", file=sys.stderr)
    return 1 if any(fates.values()) else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
