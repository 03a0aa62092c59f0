"""The configuration keys of runs: solver, datasets, evaluation, input, imports."""

from __future__ import annotations

from .keys import Condition, Key, Reader

__all__ = ["run_keys"]

MULTI_SCALE = Condition(
    test=lambda cfg: len(cfg.INPUT.MULTI_SCALE) > 0, text="lengths in INPUT.MULTI_SCALE"
)
EVALUATED = Condition(test=lambda cfg: cfg.TEST.EVAL_PERIOD > 0, text="a TEST.EVAL_PERIOD above 0")
BOXES = Condition("MODEL.KEYPOINT_ON", (False,))
DENSE_DETECTOR = Condition("MODEL.META_ARCHITECTURE", ("ResObjDenseDetector",))


def run_keys() -> list[Key]:
    """Those that do not depend on the detector."""
    return [
        *_program_keys(),
        *_evaluation_keys(),
        *_input_keys(),
    ]


def _program_keys() -> list[Key]:
    return [
        Key(
            "IMPORTS",
            [],
            "list[str]",
            "modules to import first, which register losses, assigners, ... of your own",
            readers=(Reader("load_config"),),
        ),
        Key(
            "SOLVER.EMA_DECAY",
            0.0,
            "float",
            "evaluate and save an exponential moving average of the weights; 0 disables it",
            source="EfficientDet, section 5.1",
            readers=(Reader("Trainer"),),
        ),
        Key(
            "SOLVER.ACCUMULATION_STEPS",
            1,
            "int",
            "parts of each batch of IMS_PER_BATCH, trained one after another to save memory",
            readers=(Reader("Trainer"),),
        ),
        Key(
            "SOLVER.CHECKPOINT_KEEP",
            0,
            "int",
            "number of the last checkpoints that are kept; 0 keeps all",
            readers=(Reader("Trainer"),),
        ),
        Key(
            "WRITERS",
            [],
            "list[str]",
            "where scalars go besides TensorBoard and metrics.json: csv, wandb",
            readers=(Reader("Trainer"),),
        ),
        Key(
            "DATASETS.REGISTER",
            [],
            "list[dict]",
            "datasets of your own; see docs/datasets.md",
            readers=(Reader("load_config"),),
        ),
        Key(
            "PREDICT.TILE",
            0,
            "int",
            "side of the square tiles in which `predict` and `Predictor` detect besides the whole "
            "picture, in pixels; 0 for none. Evaluations have none",
            source="SAHI",
            readers=(Reader("Predictor"),),
        ),
        Key(
            "PREDICT.TILE_OVERLAP",
            0.2,
            "float",
            "fraction of a tile that the next one repeats",
            source="SAHI",
            readers=(Reader("Predictor"),),
        ),
        Key(
            "PREDICT.SCORE_THRESH",
            [],
            "list[float]",
            "lowest scores of what `predict` and `Predictor` give: one for each class, or one for "
            "all; [] for the detector's own. Evaluations count every detection",
            readers=(Reader("Predictor"),),
        ),
    ]


def _evaluation_keys() -> list[Key]:
    evaluator = (Reader("the COCO evaluator", (BOXES,)),)
    return [
        Key(
            "TEST.BEST_METRIC",
            "AP",
            "str",
            "result by which model_best.pth is chosen, such as bbox/AP50 or validation/total_loss; "
            "AP is that of the first task of the first dataset",
            readers=(Reader("Trainer"),),
        ),
        Key(
            "TEST.PATIENCE",
            0,
            "int",
            "evaluations in a row without a better BEST_METRIC after which training ends; 0 "
            "disables it",
            readers=(Reader("Trainer", (EVALUATED,)),),
        ),
        Key(
            "TEST.VALIDATION_LOSS",
            False,
            "bool",
            "evaluations in a training measure its losses on DATASETS.TEST as well",
            readers=(Reader("Trainer"),),
        ),
        Key(
            "TEST.REPORT",
            True,
            "bool",
            "train and eval end with a report of the last evaluation, report.html; see "
            "docs/report.md",
            readers=(Reader("the commands train, eval and demo"),),
        ),
        Key(
            "TEST.SAMPLE_PICTURES",
            4,
            "int",
            "pictures that the command train draws with their detections at each evaluation, in "
            "OUTPUT_DIR/samples and TensorBoard; 0 disables it",
            readers=(Reader("the command train"),),
        ),
        Key(
            "TEST.COCO_BACKEND",
            "auto",
            "str",
            "faster-coco-eval, pycocotools, or auto: the first of them that is installed",
            readers=evaluator,
        ),
        Key(
            "TEST.AUG_MERGE",
            "nms",
            "str",
            "how a dense detector's detections in the variants of TEST.AUG become one set: nms "
            "(its own suppression) or wbf (weighted box fusion)",
            source="Solovyev et al. 2021",
            readers=(
                Reader(
                    "AugmentedDetector", (DENSE_DETECTOR, Condition("TEST.AUG.ENABLED", (True,)))
                ),
            ),
        ),
        Key(
            "TEST.GIOU_EVAL",
            False,
            "bool",
            "evaluate boxes by GIoU as well: results bbox_giou",
            source="GIoU, section 5",
            readers=evaluator,
        ),
    ]


def _input_keys() -> list[Key]:
    mapper = (Reader("the data mappers"),)
    multi_scale = (Reader("MultiScale", (MULTI_SCALE,)),)
    return [
        Key(
            "INPUT.FIXED_SIZE",
            [],
            "list[int]",
            "[height, width] to which every image is stretched; [] for MIN_SIZE_*, MAX_SIZE_*",
            readers=mapper,
        ),
        Key(
            "INPUT.SCALE_JITTER",
            [],
            "list[float]",
            "[low, high]: training images are scaled by a random factor, relative to the square of "
            "MAX_SIZE_TRAIN that they fit into, then cropped or padded to that square; [] disables",
            source="EfficientDet, section 5.1",
            readers=mapper,
        ),
        Key(
            "INPUT.MULTI_SCALE",
            [],
            "list[int]",
            "lengths of the images' longer side, of which training batches get one after loading; "
            "[] disables it",
            source="YOLO9000, section 2",
            readers=(Reader("MultiScale"),),
        ),
        Key(
            "INPUT.MULTI_SCALE_PERIOD",
            10,
            "int",
            "batches between two choices of a length",
            readers=multi_scale,
        ),
        Key(
            "INPUT.MULTI_SCALE_LAST",
            0,
            "int",
            "the last so many batches have the largest length",
            readers=multi_scale,
        ),
        Key(
            "INPUT.PHOTOMETRIC",
            False,
            "bool",
            "random brightness, contrast, saturation, hue and order of channels",
            source="SSD, section 3.6",
            readers=mapper,
        ),
        Key(
            "INPUT.EXPAND",
            1.0,
            "float",
            "put the image on a canvas of up to so many times its size, half the time; 1 disables",
            source="SSD, section 3.6",
            readers=mapper,
        ),
        Key(
            "INPUT.IOU_CROP",
            False,
            "bool",
            "crop so that some box keeps a random minimum IoU with the crop",
            source="SSD, section 2.2",
            readers=mapper,
        ),
    ]
