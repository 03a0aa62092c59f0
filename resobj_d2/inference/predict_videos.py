"""Detections in the frames of videos and cameras: a line of json for each, and a drawn video."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

from resobj_d2.process import counted

from .drawing import draw_detections
from .inputs import to_rgb
from .json_list import JsonLinesWriter
from .output_names import distinct_names, keep_inputs
from .predictor import ImageError, Predictor
from .videos import Frame, VideoFrames, VideoWriter

__all__ = ["VideoFiles", "predict_videos"]

logger = logging.getLogger("resobj_d2.inference.predict")

_SECONDS_BETWEEN_LINES = 10.0  # of the log


@dataclass(frozen=True)
class VideoFiles:
    """What :func:`predict_videos` did.

    Attributes:
        written: the ``.jsonl`` and ``.mp4`` files.
        failed: those that could not be read, or not to their end, with the reason; ``written`` has
            the frames before that.
    """

    written: list[Path] = field(default_factory=list)
    failed: dict[Path | int, str] = field(default_factory=dict)


def predict_videos(
    predictor: Predictor,
    sources: Sequence[Path | int],
    output: Path | str,
    *,
    confidence_threshold: float = 0.3,
    draw_limit: int = 100,
    max_frames: int | None = None,
) -> VideoFiles:
    """Write ``<name>.jsonl`` and ``<name>.mp4`` for each video file or camera.

    A line of the first is a frame: ``frame`` (from 0), ``time`` in seconds, and ``detections`` as
    :meth:`.Predictor.to_dicts` gives them, whatever their score. The second shows those of at least
    ``confidence_threshold``. Both are finished where an exception ends the run, with the frames so
    far. A video that cannot be read, or not to its end, is reported and does not end the run.

    Args:
        predictor: the detector.
        sources: video files and numbers of cameras.
        output: folder to write to, made where missing.
        confidence_threshold, draw_limit: lowest score and highest number of the boxes drawn.
        max_frames: most frames of each source; a camera has no end of its own.

    Raises:
        FileExistsError: a file would replace one of ``sources``.
        OSError: a file cannot be written.
        ImportError: there is no OpenCV.
    """
    output = Path(output)
    names = distinct_names([f"camera_{x}" if isinstance(x, int) else x.stem for x in sources])
    keep_inputs(
        (x for x in sources if not isinstance(x, int)),
        [output / f"{name}{end}" for name in names for end in (".jsonl", ".mp4")],
    )
    output.mkdir(parents=True, exist_ok=True)
    files = VideoFiles()
    limits = {"confidence_threshold": confidence_threshold, "draw_limit": draw_limit}
    for source, name in zip(sources, names, strict=True):
        try:
            with VideoFrames(source) as video:
                frames = islice(video, max_frames)
                _predict(predictor, video, frames, output / name, files.written, limits)
        except (ImageError, torch.OutOfMemoryError) as error:
            text = str(error)
            files.failed[source] = text if str(source) in text else f"{source}: {text}"
            logger.warning("%s", files.failed[source])
    return files


def _predict(
    predictor: Predictor,
    video: VideoFrames,
    frames: Iterable[Frame],
    path: Path,
    written: list[Path],
    limits: dict,
) -> None:
    """``written`` gets the files when something of them is there."""
    lowest = limits["confidence_threshold"]
    number, shown, last_line = 0, 0, time.monotonic()
    with (
        JsonLinesWriter(path.with_name(f"{path.name}.jsonl")) as results,
        VideoWriter(path.with_name(f"{path.name}.mp4"), video.rate) as drawn,
    ):
        for frame in frames:
            rgb = to_rgb(frame.pixels, channels="BGR", name=video.name)
            detections = predictor(rgb, channels="RGB")
            found = {
                "frame": frame.number,
                "time": round(frame.time, 3),
                "detections": predictor.to_dicts(detections),
            }
            results.add([found])
            drawn.add(draw_detections(rgb, detections, predictor.class_names, **limits))
            if number == 0:
                written += [results.path, drawn.path]
            number = frame.number + 1
            shown += int((detections.scores >= lowest).sum())
            if time.monotonic() - last_line > _SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                of = f" of {video.count}" if video.count else ""
                logger.info("%s: %s%s", video.name, counted(number, "frame"), of)
    found = f"{counted(number, 'frame')}, {counted(shown, 'detection')}"
    logger.info("%s: %s of at least %g", video.name, found, lowest)
