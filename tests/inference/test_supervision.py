"""Detections in supervision's form."""

import numpy as np
import pytest

from resobj_d2.inference import Predictor

sv = pytest.importorskip(
    "supervision", reason="supervision is not installed (pip install supervision)"
)


def test_detections_go_to_supervision(resobj, photos):
    """The lines of docs/prediction.md."""
    predictor = Predictor(*resobj)
    detections = predictor(photos / "b.jpg")
    found = sv.Detections.from_detectron2({"instances": detections})
    found.data["class_name"] = np.array([predictor.class_name(i) for i in found.class_id])
    items = predictor.to_dicts(detections)
    assert len(found) == len(items) > 5
    assert found.xyxy.tolist() == [item["box"] for item in items]
    assert found.confidence.tolist() == [item["score"] for item in items]
    assert found.class_id.tolist() == [item["class_index"] for item in items]
    assert found.data["class_name"].tolist() == [item["class_name"] for item in items]


def test_supervision_draws_and_filters_them(resobj, photos):
    predictor = Predictor(*resobj)
    image = predictor.read(photos / "b.jpg")
    found = sv.Detections.from_detectron2({"instances": predictor(image, channels="RGB")})
    threshold = float(np.median(found.confidence))
    kept = found[found.confidence > threshold].with_nms(threshold=0.5, class_agnostic=True)
    assert 0 < len(kept) < len(found)
    drawn = sv.BoxAnnotator().annotate(image.copy(), kept)
    assert drawn.shape == image.shape and not np.array_equal(drawn, image)
