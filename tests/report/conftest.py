"""Reports of hand-made detections on three small pictures whose names mean harm."""

import json

import numpy as np
import pytest
from PIL import Image

from resobj_d2.analysis.dump import main as dump_main
from resobj_d2.report.command import write_report

from .browser import Browser, find_chromium

HOSTILE = "</script><img src=x onerror=alert(1)>"
CONTENT = {
    "images": [
        {"id": 1, "file_name": "one.png", "width": 64, "height": 48},
        {"id": 2, "file_name": "two & <b>.png", "width": 64, "height": 48},
        {"id": 3, "file_name": "three.png", "width": 48, "height": 64},
    ],
    "categories": [{"id": 1, "name": "cat $x$"}, {"id": 2, "name": HOSTILE}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [36, 20, 20, 20], "area": 2000},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [10, 10, 30, 30], "area": 900},
        {"id": 4, "image_id": 2, "category_id": 1, "bbox": [40, 0, 24, 48], "area": 1152,
         "iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [0, 3072]}},
    ],
}  # fmt: skip
# Two right ones (.9, .6), a loose one (.5), one of background (.7), one in the crowd region (.8).
RESULTS = [
    {"image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "score": 0.9},
    {"image_id": 1, "category_id": 2, "bbox": [48, 30, 10, 10], "score": 0.5},
    {"image_id": 2, "category_id": 1, "bbox": [10, 10, 30, 29], "score": 0.6},
    {"image_id": 2, "category_id": 1, "bbox": [44, 10, 10, 10], "score": 0.8},
    {"image_id": 3, "category_id": 1, "bbox": [5, 5, 20, 20], "score": 0.7},
]


@pytest.fixture(scope="session")
def make_dump(tmp_path_factory):
    """A function: results, and optionally other content, to the folder of a dump."""

    def build(results=RESULTS, content=CONTENT, name="dump", pictures=True):
        folder = tmp_path_factory.mktemp("report")
        (folder / "images").mkdir()
        rng = np.random.default_rng(0)
        for image in content["images"] if pictures else []:
            pixels = rng.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / image["file_name"])
        (folder / "truth.json").write_text(json.dumps(content))
        (folder / "results.json").write_text(json.dumps(results))
        arguments = ["--data", str(folder / "truth.json"), "--images", str(folder / "images")]
        files = ["--detections", str(folder / "results.json"), "--output", str(folder / name)]
        assert dump_main([*arguments, *files]) == 0
        return folder / name

    return build


@pytest.fixture(scope="session")
def page(make_dump):
    """The report of these detections."""
    folder = make_dump(name="mine")
    return write_report([folder], folder.parent / "report.html")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium; tests that need it are skipped without."""
    if find_chromium() is None:
        pytest.skip("needs Chromium")
    browser = Browser(find_chromium(), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
