"""Frames of video files and cameras, and videos of pictures: OpenCV's part of prediction."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from resobj_d2.data.pictures import ImageError
from resobj_d2.process import put_in_place

__all__ = ["VIDEO_SUFFIXES", "Frame", "VideoFrames", "VideoWriter", "is_video"]

VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts")
    + (".ogv", ".ts", ".webm", ".wmv")
)
"""Endings of files that are read as videos."""

# Containers of one file. FFmpeg also knows lists of other files and addresses, which a file that
# someone sent must not make it open, whatever its name ends in.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,flv,asf,ogg"
_USUAL_RATE = 25.0  # frames per second, where the file or camera gives none that makes sense


@dataclass(frozen=True)
class Frame:
    """One picture of a video.

    Attributes:
        number: from 0.
        time: seconds since the beginning; of a camera, since it was opened.
        pixels: (H, W, 3) uint8 BGR, upright.
    """

    number: int
    time: float
    pixels: np.ndarray


def is_video(path: Path) -> bool:
    """Whether a file's name ends as a video's."""
    return path.suffix.lower() in VIDEO_SUFFIXES


class VideoFrames:
    """The frames of a video file or a camera, one at a time: iterate over it, once.

    Args:
        source: a file, or the number of a camera.

    Attributes:
        rate: frames per second; 25 where unknown.
        count: how many frames the file says it has; 0 if unknown, as of a camera.

    Raises:
        ImageError: it cannot be opened, is no video, or its frames are larger than pictures may be;
            while iterating, the file has no frame that can be read, or ends long before it should.
            Frames before that have been given.
        ImportError: there is no OpenCV.
    """

    def __init__(self, source: Path | int) -> None:
        cv2 = _opencv()
        self._camera = isinstance(source, int)
        self.name = f"camera {source}" if self._camera else str(source)
        with _quiet(cv2), _one_file():
            if self._camera:
                self._capture = cv2.VideoCapture(source)
            else:  # absolute, or FFmpeg takes a part before ":" for a protocol
                self._capture = cv2.VideoCapture(str(Path(source).absolute()), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise ImageError(f"{self.name} {self._reason_not_opened(source)}")
        read = self._capture.get
        width, height = read(cv2.CAP_PROP_FRAME_WIDTH), read(cv2.CAP_PROP_FRAME_HEIGHT)
        limit = Image.MAX_IMAGE_PIXELS
        if limit and width * height > limit:
            self.close()
            raise ImageError(
                f"{self.name}: frames of {width:.0f}x{height:.0f} pixels are too large"
            )
        rate = read(cv2.CAP_PROP_FPS)
        self.rate = rate if 1 <= rate <= 240 else _USUAL_RATE
        self.count = 0 if self._camera else max(int(read(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self._milliseconds = cv2.CAP_PROP_POS_MSEC

    def _reason_not_opened(self, source: Path | int) -> str:
        if self._camera:
            return "cannot be opened: is there one with this number, and does no one else use it?"
        if os.path.getsize(source) == 0:
            return "is empty"
        return "cannot be read as a video: it is damaged, cut off, or of an unknown kind"

    def __iter__(self) -> Iterator[Frame]:
        started, number, last = time.monotonic(), 0, 0.0
        while True:
            there, pixels = self._capture.read()
            if not there:
                break
            if self._camera:
                seconds = time.monotonic() - started
            else:  # some files have no times
                seconds = self._capture.get(self._milliseconds) / 1000
                seconds = seconds if seconds > last or number == 0 else last + 1 / self.rate
            yield Frame(number, seconds, pixels)
            number, last = number + 1, seconds
        if self._camera:
            raise ImageError(f"{self.name} gives no more frames")
        if number == 0:
            raise ImageError(f"{self.name}: no frame can be read: it is damaged or cut off")
        # The counts of some containers are estimates.
        if number < self.count - max(2, self.rate / 2, 0.02 * self.count):
            raise ImageError(
                f"{self.name} ends after {number} of {self.count} frames: it is damaged or cut off"
            )

    def close(self) -> None:
        """Let go of the file or camera."""
        self._capture.release()

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class VideoWriter:
    """An MP4 file of pictures of one size, which gets its name at the end.

    At the end of the ``with`` block, also of one that an exception ends, what was written is
    finished and takes the name. No file without pictures.

    Args:
        path: the file; its name ends in ".mp4".
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.rate = rate
        self._partial = path.with_name(f"{path.stem}.partial.mp4")
        self._writer = None
        self._size = (0, 0)

    def __enter__(self) -> VideoWriter:
        return self

    def add(self, picture: Image.Image) -> None:
        """Append a picture; one of another size than the first is resized.

        Raises:
            OSError: the file cannot be written.
        """
        if self._writer is None:
            self._open(picture)
        if picture.size != self._size:
            picture = picture.resize(self._size)
        self._writer.write(np.asarray(picture.convert("RGB"))[:, :, ::-1])

    def _open(self, picture: Image.Image) -> None:
        cv2 = _opencv()
        # MPEG-4 halves the resolution of colours, so that sides must be even.
        self._size = (max(picture.width & ~1, 2), max(picture.height & ~1, 2))
        code = cv2.VideoWriter_fourcc(*"mp4v")
        with _quiet(cv2):
            name = str(self._partial.absolute())
            self._writer = cv2.VideoWriter(name, cv2.CAP_FFMPEG, code, self.rate, self._size)
        if not self._writer.isOpened():
            self._writer = None
            raise OSError(f"the video {self.path} cannot be written")

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()
            put_in_place(self._partial, self.path)


def _opencv() -> ModuleType:
    # Read when FFmpeg is first used; damage is reported in one line of ours.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "videos and cameras need OpenCV: pip install opencv-python-headless", name="cv2"
        ) from error
    return cv2


@contextlib.contextmanager
def _quiet(cv2: ModuleType) -> Iterator[None]:
    """Without OpenCV's own messages."""
    log = cv2.utils.logging
    before = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(before)


@contextlib.contextmanager
def _one_file() -> Iterator[None]:
    """FFmpeg opens nothing but the file itself; options that the user has set count instead."""
    key = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
    if key in os.environ:
        yield
        return
    os.environ[key] = f"format_whitelist;{_CONTAINERS}|protocol_whitelist;file"
    try:
        yield
    finally:
        del os.environ[key]
