"""The embedded dataset: generated scenes of textured shapes, written as PNG and COCO json.

    python -m resobj_d2.data.scenes.dataset --output datasets --num-train 1200 --preview preview.png

Every picture depends on (version, seed, split, index) alone: not on the other pictures, their
number, numpy's global state or the clock. Files are equal byte for byte under equal versions of
numpy and Pillow. Needs numpy and Pillow; no Detectron2, no torch.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from resobj_d2.command import CommandParser, run_command
from resobj_d2.process import counted, replacing

from .render import Scene, render_scene
from .style import SceneStyle

__all__ = ["SplitPaths", "default_root", "ensure_scenes", "main", "save_preview"]

VERSION = 3  # raise it whenever the same seed would draw another picture
SPLITS = ("train", "val")
META_NAME = "meta.json"
_LEAST_DIAMETER = 16  # of the largest objects
_MOST = {"max_objects": 100, "max_diameter": 10_000, "distractors": 1000}


@dataclass(frozen=True)
class SplitPaths:
    """Where one split lies: the COCO json and the folder of its images."""

    json_file: Path
    image_root: Path


@dataclass(frozen=True)
class _Parameters:
    """Everything the files depend on; stored beside them to tell whether they can be reused."""

    version: int
    image_size: int
    num_train: int
    num_val: int
    seed: int
    style: SceneStyle = SceneStyle()

    def stored(self) -> dict[str, object]:
        """By name, those of the style only where they are not the usual ones."""
        usual = asdict(SceneStyle())
        own = {k: v for k, v in asdict(self.style).items() if v != usual[k]}
        return {**{k: v for k, v in asdict(self).items() if k != "style"}, **own}

    def count(self, split: str) -> int:
        return self.num_train if split == "train" else self.num_val


def default_root() -> Path:
    """Folder of all datasets, as Detectron2 finds it: ``DETECTRON2_DATASETS`` or ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def ensure_scenes(
    root: str | os.PathLike | None = None,
    *,
    name: str = "scenes",
    image_size: int = 160,
    num_train: int = 1200,
    num_val: int = 200,
    seed: int = 0,
    style: SceneStyle | None = None,
    generate: bool = True,
) -> dict[str, SplitPaths]:
    """Return the scenes under ``root/name``, generating them first where they are missing.

    The folder appears under its name only when it is complete: an interrupted run leaves at most a
    hidden partial folder, which the next run replaces. Processes that ask at the same time wait for
    the first one and share its result.

    Args:
        root: folder of datasets; default :func:`default_root`.
        name: folder of this set inside ``root``.
        image_size: side of the square pictures in pixels, at least 64.
        num_train, num_val: number of pictures of each split, at least 1.
        seed: seed of the pictures, at least 0.
        style: of the scenes; None for the usual one.
        generate: False checks the parameters and what is there, and writes nothing.

    Returns:
        "train" and "val" to their paths.

    Raises:
        ValueError: a parameter is out of range.
        FileExistsError: ``root/name`` holds something else, for instance other parameters.
    """
    wanted = _Parameters(VERSION, image_size, num_train, num_val, seed, style or SceneStyle())
    _check(wanted, name)
    root = default_root() if root is None else Path(root)
    folder = root / name
    if not _holds(folder, wanted) and generate:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{name}.lock"):
            if not _holds(folder, wanted):  # another process may have written it meanwhile
                _generate(folder, wanted)
    return {split: _split_paths(folder, split) for split in SPLITS}


def _check(wanted: _Parameters, name: str) -> None:
    lowest = {"image_size": 64, "num_train": 1, "num_val": 1, "seed": 0}
    for key, least in lowest.items():
        value = getattr(wanted, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"scenes: {key} must be a whole number >= {least}, got {value!r}")
    style = wanted.style
    for key, most in _MOST.items():
        value = getattr(style, key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise ValueError(f"scenes: {key} must be a whole number in 0..{most}, got {value!r}")
    if style.max_diameter and not _LEAST_DIAMETER <= style.max_diameter <= wanted.image_size:
        raise ValueError(
            f"scenes: max_diameter must be 0, or from {_LEAST_DIAMETER} to the image_size of "
            f"{wanted.image_size}, got {style.max_diameter}"
        )
    if not isinstance(style.look_alikes, bool):
        raise ValueError(f"scenes: look_alikes must be true or false, got {style.look_alikes!r}")
    if not name or name != os.path.basename(name) or name.startswith("."):
        raise ValueError(f"scenes: name must be a plain folder name, got {name!r}")


def _split_paths(folder: Path, split: str) -> SplitPaths:
    return SplitPaths(json_file=folder / f"{split}.json", image_root=folder / split)


def _holds(folder: Path, wanted: _Parameters) -> bool:
    """Whether the folder holds exactly these scenes; an error if it holds something else."""
    if not folder.exists():
        return False
    try:
        existing = json.loads((folder / META_NAME).read_text())
        if not isinstance(existing, dict):
            raise ValueError(existing)
    except (OSError, ValueError, RecursionError):
        raise FileExistsError(
            f"{folder.absolute()} exists but has no readable {META_NAME}, so it was not written by "
            "the scene generator. Choose another folder or name, or remove it."
        ) from None
    usual = asdict(SceneStyle())
    asked = {**usual, **wanted.stored()}
    existing = {**usual, **existing}
    different = [
        f"{key}={existing.get(key)} there, {key}={value} asked for"
        for key, value in asked.items()
        if existing.get(key) != value
    ]
    if different:
        raise FileExistsError(
            f"{folder.absolute()} holds other scenes: {'; '.join(different)}. Ask for the same "
            "parameters, choose another folder or name, or remove that folder."
        )
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it even if the process is killed."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _generate(folder: Path, wanted: _Parameters) -> None:
    """Write everything into a hidden folder beside ``folder``, then rename it."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left; we hold the lock
    try:
        progress = _Progress(folder, wanted.num_train + wanted.num_val)
        for split in SPLITS:
            _write_split(_split_paths(partial, split), split, wanted, progress)
        (partial / META_NAME).write_text(json.dumps(wanted.stored(), indent=1) + "\n")
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    progress.finish()


def _write_split(paths: SplitPaths, split: str, wanted: _Parameters, progress: _Progress) -> None:
    paths.image_root.mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(wanted.count(split)):
        stream = [wanted.version, wanted.seed, wanted.image_size, SPLITS.index(split), index]
        scene = render_scene(wanted.image_size, np.random.default_rng(stream), wanted.style)
        image_id, file_name = index + 1, f"{index + 1:06d}.png"
        # Level 1: grain hardly compresses further, and writing is a third of the run time.
        Image.fromarray(scene.image).save(paths.image_root / file_name, compress_level=1)
        size = {"width": wanted.image_size, "height": wanted.image_size}
        images.append({"id": image_id, "file_name": file_name, **size})
        annotations.extend(_coco_annotations(scene, image_id, len(annotations) + 1))
        progress.step()
    content = {
        "info": {"description": f"resobj_d2 scenes, {split} split", **wanted.stored()},
        "licenses": [],
        "categories": [
            {"id": i + 1, "name": name} for i, name in enumerate(wanted.style.class_names)
        ],
        "images": images,
        "annotations": annotations,
    }
    paths.json_file.write_text(json.dumps(content))


def _coco_annotations(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    return [
        {
            "id": first_id + offset,
            "image_id": image_id,
            "category_id": scene_object.category + 1,
            "bbox": list(scene_object.box),
            "area": scene_object.area,
            "iscrowd": 0,
        }
        for offset, scene_object in enumerate(scene.objects)
    ]


class _Progress:
    """Prints a line at the start, every two seconds and at the end."""

    def __init__(self, folder: Path, total: int):
        self.total, self.done = total, 0
        self.start = self.last = time.monotonic()
        print(f"scenes: writing {counted(total, 'picture')} to {folder.absolute()}", flush=True)

    def step(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last >= 2.0:
            self.last = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate
            print(f"scenes: {self.done}/{self.total}, {rate:.0f}/s, {left:.0f} s left", flush=True)

    def finish(self) -> None:
        print(f"scenes: done in {time.monotonic() - self.start:.1f} s", flush=True)


def save_preview(paths: SplitPaths, output: str | os.PathLike, *, columns: int = 6, rows: int = 4):
    """Save a contact sheet of the first pictures of a split with their boxes and class names."""
    content = json.loads(paths.json_file.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    shown = content["images"][: columns * rows]
    cell = 240
    sheet = Image.new("RGB", (columns * (cell + 4), rows * (cell + 4)), "white")
    for position, image in enumerate(shown):
        with Image.open(paths.image_root / image["file_name"]) as stored:
            picture = stored.convert("RGB").resize((cell, cell))
        draw, scale = ImageDraw.Draw(picture), cell / image["width"]
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                left, top, width, height = (value * scale for value in annotation["bbox"])
                draw.rectangle((left, top, left + width, top + height), outline="lime")
                label = (left + 2, max(top - 11, 0))
                name = names[annotation["category_id"]]
                draw.rectangle(draw.textbbox(label, name), fill="black")
                draw.text(label, name, fill="yellow")
        row, column = divmod(position, columns)
        sheet.paste(picture, (column * (cell + 4) + 2, row * (cell + 4) + 2))
    with replacing(output, binary=True) as file:
        sheet.save(file, Image.registered_extensions().get(Path(output).suffix.lower(), "PNG"))


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m resobj_d2.data.scenes.dataset",
        description="Generate the scenes dataset (COCO json and PNG).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", default=str(default_root()), help="folder of datasets")
    parser.add_argument("--name", default="scenes", help="folder of this set inside it")
    parser.add_argument("--num-train", type=int, default=1200, help="pictures of the train split")
    parser.add_argument("--num-val", type=int, default=200, help="pictures of the val split")
    parser.add_argument("--size", type=int, default=160, help="side of the pictures in pixels")
    parser.add_argument("--seed", type=int, default=0)
    usual = SceneStyle()
    parser.add_argument("--max-objects", type=int, default=usual.max_objects, help="0: as usual")
    parser.add_argument("--max-diameter", type=int, default=usual.max_diameter, help="0: as usual")
    parser.add_argument("--look-alikes", action="store_true", help="twenty similar classes")
    parser.add_argument(
        "--distractors", type=int, default=usual.distractors, help="most shapes of no class"
    )
    parser.add_argument("--preview", help="also save a contact sheet of train pictures here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """The command.

    Raises:
        ValueError, FileExistsError: as :func:`ensure_scenes`.
    """
    options = _parse_arguments(arguments)
    paths = ensure_scenes(
        options.output,
        name=options.name,
        image_size=options.size,
        num_train=options.num_train,
        num_val=options.num_val,
        seed=options.seed,
        style=SceneStyle(
            max_objects=options.max_objects,
            max_diameter=options.max_diameter,
            look_alikes=options.look_alikes,
            distractors=options.distractors,
        ),
    )
    print(f"scenes: {Path(options.output, options.name).absolute()}")
    if options.preview:
        save_preview(paths["train"], options.preview)
        print(f"scenes: preview in {Path(options.preview).absolute()}")


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
