"""Settings of the papers' baselines and tables, which Detectron2's defaults would change."""

import pytest

from resobj_d2.config import get_config
from resobj_d2.config.zoo import zoo_entries

CONF = "retinanet_conf_{}_R_50_FPN_600_1x"


def read(name):
    return get_config(name, training=False)


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("arm", ["fl_l1", "iou_aware_l1", "conf"])
def test_arms_of_retinanet_conf_share_box_loss_and_divisor(arm, depth):
    """Eq. 4, 5 and 9 divide by the positives of the batch, and every box loss is L1."""
    dense = read(f"retinanet_{arm}_R_{depth}_FPN_600_1x").MODEL.DENSE
    assert (dense.NORMALIZER.NAME, dense.BOX_LOSS.NAME) == ("ForegroundCount", "L1Loss")
    assert dense.QUALITY.ENABLED == (arm != "fl_l1")


@pytest.mark.parametrize("loss", ["l1", "smooth_l1", "l2", "gfocal", "ce_w_1e-4", "ce_w_1e-3"])
def test_table_2_of_retinanet_conf_is_scored_by_the_class_alone(loss):
    assert read(CONF.format(loss)).MODEL.DENSE.QUALITY.ALPHA == 0.0


def test_table_4s_floor_is_above_one_half():
    """A score of exactly .5 is dropped; the next number in float32 is not."""
    ((name, floor),) = read(CONF.format("score_floor")).MODEL.DENSE.FUSION.FLOORS
    assert name == "quality" and 0.5 < floor < 0.5 + 2**-24


@pytest.mark.parametrize(
    "name",
    [
        "faster_rcnn_smooth_l1_R_50_FPN_800_1x",
        "faster_rcnn_iou_balanced_R_50_FPN_800_1x",
        "faster_rcnn_balanced_fpn_R_50_FPN_800_1x",
    ],
)
def test_libras_baseline_and_what_is_added_to_it_have_smooth_l1(name):
    model = read(name).MODEL
    assert (model.ROI_BOX_HEAD.SMOOTH_L1_BETA, model.RPN.SMOOTH_L1_BETA) == (1.0, 0.1111)


@pytest.mark.parametrize("name", ["libra_rcnn_R_50", "faster_rcnn_giou_R_50"])
def test_where_the_rois_have_another_loss_the_rpn_has_smooth_l1(name):
    assert read(f"{name}_FPN_800_1x").MODEL.RPN.SMOOTH_L1_BETA == 0.1111


@pytest.mark.parametrize("depth", [50, 101])
def test_all_anchors_of_the_rpn_are_trained_after_a_warm_up_from_a_thousandth(depth):
    """Without it training diverges: docs/methods.md, "Faster R-CNN with a residual RPN"."""
    cfg = read(f"faster_rcnn_resobj_t2_R_{depth}_FPN_800_1x")
    assert cfg.SOLVER.WARMUP_ITERS >= 1000 and cfg.SOLVER.WARMUP_FACTOR <= 0.001
    assert cfg.MODEL.RESOBJ_RPN.OBJECTNESS.PRIOR_PROB == 0.01


def test_what_follows_the_released_code_says_after():
    by_stem = {entry.name.split("/")[1]: entry for entry in zoo_entries()}
    assert "after" in by_stem["retinanet_resobj_released_R_50_FPN_800_1x.yaml"].method
    cfg = read("retinanet_resobj_released_R_50_FPN_800_1x")
    assert cfg.MODEL.DENSE.BOX_LOSS.NAME == "L1Loss"
    assert cfg.INPUT.MIN_SIZE_TRAIN == (800,)


@pytest.mark.parametrize(
    "name, missing",
    [
        ("tood_R_50_FPN_800_1x", "TOOD's head"),
        ("ssd512_refinedet_vgg16", "connection blocks"),
        ("paa_R_50_FPN_800_1x", "score voting"),
    ],
)
def test_a_figure_of_a_fuller_system_says_what_the_configuration_lacks(name, missing):
    (entry,) = [x for x in zoo_entries() if x.name.endswith(f"/{name}.yaml")]
    assert any(missing in figure.note for figure in entry.figures)


@pytest.mark.parametrize("loss, weight", [("giou", 10.0), ("iou", 10.0), ("diou", 12.0)])
def test_losses_of_decoded_boxes_have_their_papers_weight(loss, weight):
    box_head = read(f"faster_rcnn_{loss}_R_50_FPN_800_1x").MODEL.ROI_BOX_HEAD
    assert box_head.BBOX_REG_LOSS_WEIGHT == weight


@pytest.mark.parametrize(
    "name, iterations",
    [
        ("faster_rcnn_vgg16_voc07", 70000),
        ("faster_rcnn_vgg16_voc07_12", 110000),
        ("fast_rcnn_vgg16_voc07", 40000),
        ("fast_rcnn_vgg16_voc07_12", 80000),
        ("yolov3_giou_voc07_12", 50200),
        ("faster_rcnn_giou_R_50_FPN_voc07_12", 18000),
    ],
)
def test_schedules_on_voc_are_those_that_the_page_names(name, iterations, repository):
    assert read(name).SOLVER.MAX_ITER == iterations
    page = (repository / "configs/README.md").read_text()
    assert str(iterations) in page.partition("`PascalVOC-Detection/` has")[2].partition("\n\n")[0]
