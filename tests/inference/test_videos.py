"""Videos and cameras: a clip made here, broken files, an interruption, a camera that is played."""

import contextlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from resobj_d2.inference.predict import find_images, main
from resobj_d2.inference.predict_videos import predict_videos
from resobj_d2.inference.predictor import ImageError, Predictor
from resobj_d2.inference.videos import VideoFrames, VideoWriter

with contextlib.suppress(ImageError):  # as in a command, the package is the first to use FFmpeg
    VideoFrames(Path(__file__))

RATE, COUNT, SIZE = 12.5, 8, (80, 64)
LEVELS = [20 * i for i in range(1, COUNT + 1)]


def write(path, count=COUNT):
    """Grey frames, each brighter than the one before, with a red square at the left."""
    code = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, RATE, SIZE)
    assert writer.isOpened()
    for level in (LEVELS * count)[:count]:
        frame = np.full((SIZE[1], SIZE[0], 3), level, dtype=np.uint8)
        frame[16:48, 8:40] = (0, 0, 255)  # BGR
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture
def clip(tmp_path):
    return write(tmp_path / "clip.mp4")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_frames_have_numbers_times_and_pixels(clip):
    with VideoFrames(clip) as video:
        assert video.rate == RATE and video.count == COUNT
        frames = list(video)
    assert [frame.number for frame in frames] == list(range(COUNT))
    assert [frame.time for frame in frames] == pytest.approx([i / RATE for i in range(COUNT)])
    corner = [frame.pixels[:, 60:].mean() for frame in frames]
    assert corner == pytest.approx(LEVELS, abs=4)
    assert frames[0].pixels.shape == (64, 80, 3)
    assert frames[0].pixels[32, 24].tolist() == pytest.approx([0, 0, 255], abs=40)


def test_every_frame_is_a_line_and_a_picture(resobj, clip, tmp_path, caplog):
    predictor = Predictor(*resobj)
    with caplog.at_level("INFO"):
        files = predict_videos(predictor, [clip], tmp_path / "out", confidence_threshold=0.0)
    assert files.failed == {}
    assert files.written == [tmp_path / "out" / "clip.jsonl", tmp_path / "out" / "clip.mp4"]
    found = lines(files.written[0])
    with VideoFrames(clip) as video:
        for line, frame in zip(found, video, strict=True):
            expected = predictor.to_dicts(predictor(frame.pixels, channels="BGR"))
            assert line == json.loads(
                json.dumps({"frame": frame.number, "time": frame.time, "detections": expected})
            )
    assert all(len(line["detections"]) > 5 for line in found)
    total = sum(len(line["detections"]) for line in found)
    assert f"8 frames, {total} detections of at least 0" in caplog.text
    with VideoFrames(files.written[1]) as drawn:
        pictures = list(drawn)
        assert drawn.rate == RATE
    assert len(pictures) == COUNT
    assert pictures[0].pixels.shape == (512, 640, 3)  # as pictures, enlarged
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == ["clip.jsonl", "clip.mp4"]


def test_odd_sides_and_other_sizes_are_made_to_fit(tmp_path):
    with VideoWriter(tmp_path / "odd.mp4", 10.0) as writer:
        for size in ((65, 49), (80, 60)):
            writer.add(Image.new("RGB", size, "red"))
    with VideoFrames(tmp_path / "odd.mp4") as video:
        assert [frame.pixels.shape for frame in video] == [(48, 64, 3)] * 2


def broken(folder):
    """Files that are no whole videos, and what is said about each."""
    whole = write(folder / "whole.mp4").read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mov").write_text("not a video")
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # without its index
    # Lists of other files, which FFmpeg would open.
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    (folder / "play.mp4").write_text(f"#EXTM3U\n#EXTINF:10,\n{folder}/whole.mp4\n#EXT-X-ENDLIST\n")
    unknown = "cannot be read as a video: it is damaged, cut off, or of an unknown kind"
    reasons = {name: unknown for name in ("text.mov", "cut.mp4", "list.mp4", "play.mp4")}
    return {"empty.mp4": "is empty", **reasons}


def test_what_is_no_video_ends_in_one_line_and_the_others_go_on(weights, tmp_path, capfd):
    reasons = broken(tmp_path)
    yaml, checkpoint = weights
    output = tmp_path / "out"
    status = main(
        ["--config-file", str(yaml), "--input", str(tmp_path / "*.m*"), "--output", str(output)]
        + ["--frames", "2", "MODEL.WEIGHTS", str(checkpoint)]
    )
    out, err = capfd.readouterr()
    assert status == 1
    assert out.splitlines() == [str(output / "whole.jsonl"), str(output / "whole.mp4")]
    assert len(lines(output / "whole.jsonl")) == 2
    for name, reason in reasons.items():
        assert f"  {tmp_path / name} {reason}\n" in err
    assert "5 of 6 videos could not be read, or not to the end:" in err
    told = [line for line in err.splitlines() if not line.startswith(("  ", "5 of 6"))]
    assert [
        line for line in told if not line.startswith(("INFO", "WARNING"))
    ] == []  # nothing of FFmpeg's


def test_a_file_that_ends_early_keeps_its_frames(resobj, tmp_path):
    path = write(tmp_path / "long.mkv", count=60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    files = predict_videos(Predictor(*resobj), [path], tmp_path / "out", max_frames=2)
    assert files.failed == {} and len(files.written) == 2  # nothing is missed so far
    read = 0
    with VideoFrames(path) as video, pytest.raises(ImageError) as caught:
        for _ in video:
            read += 1
    assert 5 < read < 50
    end = f"{path} ends after {read} of 60 frames: it is damaged or cut off"
    assert str(caught.value) == end


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, torch.OutOfMemoryError])
def test_what_ends_a_run_leaves_finished_files(resobj, clip, tmp_path, error):
    class Stopped(Predictor):
        left = 3

        def __call__(self, images, *, channels=None):
            if not self.left:
                raise error("stop")
            self.left -= 1
            return super().__call__(images, channels=channels)

    if error is torch.OutOfMemoryError:
        files = predict_videos(Stopped(*resobj), [clip], tmp_path / "out")
        assert files.failed == {clip: f"{clip}: stop"} and len(files.written) == 2
    else:
        with pytest.raises(error):
            predict_videos(Stopped(*resobj), [clip], tmp_path / "out")
    folder = tmp_path / "out"
    assert [line["frame"] for line in lines(folder / "clip.jsonl")] == [0, 1, 2]
    with VideoFrames(folder / "clip.mp4") as drawn:
        assert len(list(drawn)) == 3
    assert not list(folder.glob("*partial*"))


class Camera:
    """Plays five frames, as a camera that is then unplugged."""

    def __init__(self, number):
        self.number, self.left, self.released = number, 5, False

    def isOpened(self):  # noqa: N802 (OpenCV's)
        return self.number == 1

    def get(self, key):
        return 0.0

    def read(self):
        self.left -= 1
        return self.left >= 0, np.full((64, 80, 3), 90, dtype=np.uint8)

    def release(self):
        self.released = True


def test_a_camera_is_read_until_it_ends_or_there_are_enough_frames(resobj, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    predictor = Predictor(*resobj)
    files = predict_videos(predictor, [1], tmp_path, max_frames=4)
    found = lines(tmp_path / "camera_1.jsonl")
    assert files.failed == {} and [x["frame"] for x in found] == [0, 1, 2, 3]
    assert sorted(x["time"] for x in found) == [x["time"] for x in found]
    files = predict_videos(predictor, [1, 0], tmp_path)
    assert files.failed[1] == "camera 1 gives no more frames"
    assert files.failed[0].startswith("camera 0 cannot be opened")
    assert len(lines(tmp_path / "camera_1.jsonl")) == 5
    assert files.written == [tmp_path / "camera_1.jsonl", tmp_path / "camera_1.mp4"]


def test_inputs_stay_and_are_found(resobj, clip, tmp_path):
    with pytest.raises(FileExistsError, match="clip.mp4 is an input and would be overwritten"):
        predict_videos(Predictor(*resobj), [clip], tmp_path)
    assert find_images([str(tmp_path / "*.mp4")], videos=True) == [clip]
    with pytest.raises(FileNotFoundError, match="For videos, and for images in its subfolders"):
        find_images([str(tmp_path)], videos=True)


def test_wrong_use_is_one_line(weights, photos, tmp_path, capsys, monkeypatch):
    yaml, checkpoint = weights
    common = ["--config-file", str(yaml), "--output", str(tmp_path / "out")]
    given = ["MODEL.WEIGHTS", str(checkpoint)]
    for options in ([], ["--camera", "-1"], ["--camera", "0", "--input", "x.mp4"]):
        with pytest.raises(SystemExit):
            main([*common, *options, *given])
    assert main([*common, "--input", str(photos), "--frames", "3", *given]) == 2
    assert "--frames is for videos" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main([*common, "--camera", "0", *given]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].endswith("need OpenCV: pip install opencv-python-headless")
