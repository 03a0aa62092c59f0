"""Pascal VOC's metric: by hand, and as Detectron2's evaluator has it."""

import math
import re

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_voc_instances
from detectron2.evaluation import DatasetEvaluators, PascalVOCDetectionEvaluator
from PIL import Image

from resobj_d2.data.register import register_datasets
from resobj_d2.evaluation import build_evaluator
from resobj_d2.evaluation.voc import VocEvaluator
from tests.evaluation.predictions import evaluate, evaluate_listed, instances, register

pytestmark = pytest.mark.usefixtures("clean_catalogs")

VOC_XML = (
    """<annotation><size><width>100</width><height>100</height></size>{objects}</annotation>"""
)
VOC_OBJECT = """<object><name>{name}</name><pose>x</pose><truncated>0</truncated><difficult>
{difficult}</difficult><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{right}</xmax>
<ymax>{bottom}</ymax></bndbox></object>"""


def _write_voc(root, objects_of_images):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for identity, objects in objects_of_images.items():
        Image.new("RGB", (100, 100)).save(root / "JPEGImages" / f"{identity}.jpg")
        body = "".join(
            VOC_OBJECT.format(name=n, difficult=d, x=x, y=y, right=r, bottom=b)
            for n, d, (x, y, r, b) in objects
        )
        (root / "Annotations" / f"{identity}.xml").write_text(VOC_XML.format(objects=body))
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n".join(objects_of_images))


def _voc_evaluator(root, output, backend_name="pycocotools", **entry):
    entry = {"name": "v", "format": "voc", "root": str(root), "split": "test", **entry}
    register_datasets([{**entry, "classes": ["cat", "dog"]}])
    cfg = get_cfg()
    cfg.TEST.COCO_BACKEND, cfg.TEST.GIOU_EVAL = backend_name, False
    return build_evaluator(cfg, "v", str(output))


def test_voc_folder_gives_both_metrics(tmp_path, backend_name):
    """Cat: one box found, one missed, a difficult one found: ignored by both metrics.

    VOC (area under the curve): precision 1 up to recall 1/2: AP 1/2. COCO: 51 of 101 points.
    """
    objects = {
        "a": [("cat", 0, (1, 1, 10, 10)), ("cat", 0, (31, 31, 40, 40))],
        "b": [("cat", 1, (1, 1, 10, 10)), ("dog", 0, (51, 51, 60, 60))],
    }
    _write_voc(tmp_path / "voc", objects)
    evaluator = _voc_evaluator(tmp_path / "voc", tmp_path / "out", backend_name)
    assert isinstance(evaluator, DatasetEvaluators)
    found = {
        "a": [((0, 0, 10, 10), 0, 0.9)],
        "b": [((0, 0, 10, 10), 0, 0.95), ((50, 50, 60, 60), 1, 0.5)],
    }
    results = evaluate_listed(evaluator, found)
    assert results["bbox"]["AP-cat"] == pytest.approx(100 * 51 / 101)
    assert results["bbox"]["AP-dog"] == pytest.approx(100.0)
    assert results["voc"]["AP50"] == pytest.approx(75.0)


def test_voc_2007_uses_eleven_points(tmp_path):
    """Recall 1/2 reached at precision 1: 6 of 11 points."""
    _write_voc(tmp_path / "voc", {"a": [("cat", 0, (1, 1, 10, 10)), ("cat", 0, (31, 31, 40, 40))]})
    root = tmp_path / "voc"
    (root / "Annotations" / "a.xml").write_text(
        (root / "Annotations" / "a.xml").read_text().replace("</annotation>", "")
        + VOC_OBJECT.format(name="dog", difficult=0, x=51, y=51, right=60, bottom=60)
        + "</annotation>"
    )
    evaluator = _voc_evaluator(root, tmp_path / "out", year=2007)
    found = {"a": [((0, 0, 10, 10), 0, 0.9), ((50, 50, 60, 60), 1, 0.5)]}
    results = evaluate_listed(evaluator, found)
    assert results["voc"]["AP50"] == pytest.approx(100 * (6 / 11 + 1) / 2)


def test_xml_without_vocs_tags_and_with_parts_of_pixels_gets_both_metrics(tmp_path):
    """The mean is over the classes that are there: no dog is neither found nor missed."""
    _write_voc(tmp_path / "voc", {"a": [("cat", 0, (1.25, 1, 10, 10))]})
    xml_file = tmp_path / "voc" / "Annotations" / "a.xml"
    text = xml_file.read_text().replace("<pose>x</pose><truncated>0</truncated>", "")
    xml_file.write_text(re.sub("(?s)<difficult>.*</difficult>", "", text))
    evaluator = _voc_evaluator(tmp_path / "voc", tmp_path / "out")
    results = evaluate_listed(evaluator, {"a": [((0.25, 0, 10, 10), 0, 0.9)]})
    assert results["bbox"]["AP-cat"] == pytest.approx(100.0)
    assert results["voc"]["AP"] == results["voc"]["AP50"] == pytest.approx(100.0)
    assert results["voc"]["AP50-cat"] == pytest.approx(100.0)
    assert math.isnan(results["voc"]["AP50-dog"])


LARGE_XML = "<annotation><size><width>300</width><height>300</height></size>{}</annotation>"
BOX_OBJECT = """<object><name>{name}</name><pose>x</pose><truncated>0</truncated><difficult>
{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax>
<ymax>{box[3]}</ymax></bndbox></object>"""


@pytest.mark.parametrize("year", [2007, 2012])
def test_vocs_metric_is_detectron2s(tmp_path, year):
    """On whole pixels and scores of three digits, to which Detectron2 rounds."""
    draw = np.random.default_rng(year)
    names = ("cat", "dog", "bird")
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    found = {}
    scores = iter(draw.permutation(1000) / 1000)  # no ties, whose order is Detectron2's secret
    for image in ("a", "b", "c", "d", "e", "f"):
        Image.new("RGB", (300, 300)).save(tmp_path / "JPEGImages" / f"{image}.jpg")
        objects, boxes, classes = [], [], []
        for _ in range(draw.integers(2, 9)):
            size = draw.integers(5, 100, 2)
            first = draw.integers(1, 200, 2)
            box = [*first, *(first + size)]
            number = int(draw.integers(0, 3))
            difficult = int(draw.random() < 0.3)
            objects.append(BOX_OBJECT.format(name=names[number], difficult=difficult, box=box))
            for _ in range(draw.integers(0, 3)):
                moved = np.array(box) - [1, 1, 0, 0] + draw.integers(-4, 5, 4)
                boxes.append(moved.clip(0).tolist())
                classes.append(number if draw.random() < 0.8 else int(draw.integers(0, 3)))
        found[image] = instances(boxes, [float(next(scores)) for _ in boxes], classes)
        xml = tmp_path / "Annotations" / f"{image}.xml"
        xml.write_text(LARGE_XML.format("".join(objects)))
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("\n".join(found))
    entry = {"name": "v", "format": "voc", "root": str(tmp_path), "split": "test", "year": year}
    register_datasets([{**entry, "classes": list(names)}])
    ours = evaluate(VocEvaluator("v"), found)["voc"]
    theirs = evaluate(PascalVOCDetectionEvaluator("v"), found)["bbox"]
    assert 5 < theirs["AP"] < 95
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, abs=1e-9)
    assert load_voc_instances(str(tmp_path), "test", names)[0]["image_id"] == "a"


def test_voc_metric_is_over_the_classes_that_are_there(tmp_path):
    MetadataCatalog.get("other").set(thing_classes=["cat", "dog"])
    annotations = [{"bbox": [0, 0, 10, 10]}, {"bbox": [50, 50, 9, 9], "difficult": 1}]
    register(tmp_path, annotations, categories=("cat", "dog"))
    found = {1: instances([[0, 0, 10, 10], [50, 50, 59, 59], [80, 80, 90, 90]], [0.9, 0.95, 0.2])}
    results = evaluate(VocEvaluator("set"), found)["voc"]
    assert results["AP"] == pytest.approx(100)
    assert results["AP50"] == pytest.approx(100)
    assert results["AP50-cat"] == pytest.approx(100)
    assert math.isnan(results["AP50-dog"])
