"""docs/migration.md is right about Detectron2, and its code runs."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage

from resobj_d2 import ops
from resobj_d2.acceleration import accelerated_parts
from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.config import add_resobj_config
from resobj_d2.matching import DeltaCoder
from tests.conftest import RESNET

# A non-default value for each key that both have; every one changes the results.
OTHER = {
    "NORM": "GN",
    "IOU_THRESHOLDS": [0.2, 0.3],
    "IOU_LABELS": [0, 0, 1],
    "FOCAL_LOSS_ALPHA": 0.6,
    "FOCAL_LOSS_GAMMA": 1.0,
    "SMOOTH_L1_LOSS_BETA": 0.7,
    "BBOX_REG_WEIGHTS": [2.0, 3.0, 4.0, 5.0],
    "SCORE_THRESH_TEST": 0.95,
    "TOPK_CANDIDATES_TEST": 5,
    "NMS_THRESH_TEST": 0.05,
    "PRIOR_PROB": 0.2,
}
STRUCTURE = ("IN_FEATURES", "NUM_CLASSES", "NUM_CONVS")


def counterpart(migration, key):
    (ours,) = (b for a, b in migration.rows("The keys:") if a == f"MODEL.RETINANET.{key}")
    return ours.partition("`")[0]


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, (list, tuple)) else cfg


def results(pair, batch, tmp_path, spread=3.0):
    """Losses and the first image's (boxes, scores) of both models with Detectron2's weights."""
    ours, theirs = pair
    with torch.no_grad():
        for conv in (theirs.head.cls_score, theirs.head.bbox_pred):
            conv.weight.normal_(std=spread, generator=torch.Generator().manual_seed(1))
        theirs.head.cls_score.bias.fill_(-2.0)
    torch.save({"model": theirs.state_dict()}, tmp_path / "retinanet.pth")
    ResObjCheckpointer(ours, strict=True).load(str(tmp_path / "retinanet.pth"))
    found = []
    for model in pair:
        with torch.no_grad(), EventStorage():
            losses = {k: v.item() for k, v in model.train()(batch).items()}
            instances = model.eval()(batch)[0]["instances"]
        found.append((losses, instances.pred_boxes.tensor, instances.scores))
    return found


def test_every_key_of_detectron2s_retinanet_is_in_the_table(migration):
    named = {
        row[0].removeprefix("MODEL.RETINANET.").split(":")[0] for row in migration.rows("The keys")
    }
    assert set(get_cfg().MODEL.RETINANET) <= named


def test_keys_have_the_same_defaults(migration):
    cfg = get_cfg()
    add_resobj_config(cfg)
    for key in (*OTHER, *STRUCTURE):
        assert value(cfg, f"MODEL.RETINANET.{key}") == value(cfg, counterpart(migration, key)), key


@pytest.mark.parametrize(
    "keys",
    [
        "IOU_THRESHOLDS FOCAL_LOSS_ALPHA FOCAL_LOSS_GAMMA SMOOTH_L1_LOSS_BETA BBOX_REG_WEIGHTS",
        pytest.param("NORM", marks=pytest.mark.slow),
        pytest.param("IOU_LABELS", marks=pytest.mark.slow),
        pytest.param("SCORE_THRESH_TEST", marks=pytest.mark.slow),
        pytest.param("TOPK_CANDIDATES_TEST", marks=pytest.mark.slow),
        pytest.param("NMS_THRESH_TEST", marks=pytest.mark.slow),
    ],
)
def test_keys_mean_the_same(migration, retinanets, make_batch, tmp_path, keys):
    # Group normalisation with 32 groups needs a wider pyramid than the toy's.
    options = list(RESNET) if keys == "NORM" else []
    for key in keys.split():
        options += [f"MODEL.RETINANET.{key}", OTHER[key], counterpart(migration, key), OTHER[key]]
    batch = make_batch([(128, 128, 3), (128, 96, 2)])
    spread = 0.3 if keys == "NORM" else 3.0  # normalised features are larger
    ours, theirs = results(retinanets(*options), batch, tmp_path, spread)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    assert len(theirs[2]) > 0 and theirs[2].std() > 0
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours[2], theirs[2])


def test_initial_scores_mean_the_same(migration, retinanets):
    other = OTHER["PRIOR_PROB"]
    ours, theirs = retinanets(
        "MODEL.RETINANET.PRIOR_PROB", other, counterpart(migration, "PRIOR_PROB"), other
    )
    predictor = ours.state_dict()["streams.anchors.stages.0.cls.bias"]
    torch.testing.assert_close(predictor, theirs.state_dict()["head.cls_score.bias"])
    assert predictor.sigmoid()[0].item() == pytest.approx(other)


def test_giou_means_the_same(migration, retinanets, make_batch, tmp_path):
    pairs = [row for row in migration.rows("The keys:") if row[0].endswith("TYPE: giou")]
    options = [part for setting in pairs[0] for part in setting.split(": ")]
    ours, theirs = results(retinanets(*options), make_batch([(128, 128, 3)]), tmp_path)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)


def test_anchors_are_detectron2s(octave):
    sizes = [[4 * s * 2 ** (i / 3) for i in range(3)] for s in octave.strides]
    theirs = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[[0.5, 1.0, 2.0]], strides=octave.strides, offset=0.0
    )
    maps = [(16, 12), (8, 6), (4, 3), (2, 2), (1, 1)]
    expected = torch.cat([b.tensor for b in theirs([torch.zeros(1, 1, *size) for size in maps])])
    torch.testing.assert_close(octave(maps).boxes, expected)


def test_the_yaml_for_a_checkpoint_of_the_zoo(migration):
    cfg, stock = migration.config(0), get_cfg()
    file = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    stock.merge_from_file(file)
    assert cfg.MODEL.META_ARCHITECTURE == "ResObjDenseDetector"
    for key in ("MAX_ITER", "STEPS", "BASE_LR", "IMS_PER_BATCH", "MOMENTUM", "WEIGHT_DECAY"):
        assert value(cfg, f"SOLVER.{key}") == value(stock, f"SOLVER.{key}"), key
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT", "TEST.DETECTIONS_PER_IMAGE"):
        assert value(cfg, key) == value(stock, key), key
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 and stock.MODEL.RESNETS.STRIDE_IN_1X1


def test_accelerate_accepts_the_model(migration_code):
    assert accelerated_parts(migration_code["model"])


def test_a_box_without_anchor_overlap():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    far = torch.tensor([[100.0, 100.0, 110.0, 110.0]])
    match = ops.match_anchors(anchors, far, [1], thresholds=[0.4, 0.5], labels=[0, -1, 1])
    assert match.label.tolist() == [[0, 0]]
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    assert matcher(pairwise_iou(Boxes(far), Boxes(anchors)))[1].tolist() == [1, 1]


def test_dw_and_dh_have_an_upper_limit_only():
    anchor = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    theirs = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    for size in (20.0, -8.0):
        deltas = torch.tensor([[0.0, 0.0, size, size]])
        expected = theirs.apply_deltas(deltas, anchor)
        torch.testing.assert_close(DeltaCoder().decode(anchor, deltas), expected)
    assert expected[0, 2] - expected[0, 0] == pytest.approx(10 * 2.718281828**-8, rel=1e-2)
