"""A detector with the preprocessing of test time, from images to detections.

from resobj_d2.inference import Predictor

predictor = Predictor.from_config("my.yaml", weights="output/model_final.pth")
detections = predictor("photo.jpg")
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.config import load_config
from resobj_d2.config.load import class_counts, merge_overrides
from resobj_d2.data.augmentation import build_size_augmentations
from resobj_d2.data.pictures import ImageError, read_picture, rgb_to_format
from resobj_d2.modeling.feature_maps import explained_feature_maps
from resobj_d2.modeling.heads.single_cell_norm import take_single_cells
from resobj_d2.modeling.test_time_augmentation import with_augmentation
from resobj_d2.process import counted

from .classes import choose_classes
from .inputs import SingleImage, in_batches, is_single, to_rgb
from .plain import instances_to_dicts
from .tiling import Tiling

__all__ = ["ImageError", "Predictor", "load_prediction_config"]

logger = logging.getLogger(__name__)


class Predictor:
    """From images to detections, with every meta-architecture that returns ``instances``.

    The names of the classes are ``class_names``, else those of ``DATASETS.TEST``, else those that
    the checkpoint carries. Where the dataset and the checkpoint disagree, the checkpoint wins and
    a warning says so. Without any names classes are called "class 0", "class 1", and so on.

    Args:
        cfg: a config from :func:`resobj_d2.config.load_config`.
        model: a model in memory, which is put into evaluation mode; by default ``MODEL.WEIGHTS``
            is loaded into the model of ``cfg``.
        class_names: of classes 0..K-1.
        batch_size: images that go through the model together where a list is given. They are padded
            to one size, as in Detectron2's evaluation, so that detections may differ in the last
            digits from those of 1, the default.

    Attributes:
        class_names: of classes 0..K-1; empty where none are known.
        num_steps: T of Residual Objectness, 0 without.

    Raises:
        ValueError: there is neither a model nor ``MODEL.WEIGHTS``; the number of ``class_names``,
            or of scores in ``PREDICT.SCORE_THRESH``, is not the model's.
        OSError, CheckpointError: the weights cannot be read or are another model's.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module | None = None,
        *,
        class_names: Sequence[str] | None = None,
        batch_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        stored: list[dict] = []
        if model is None:
            model, stored = _load_model(cfg)
        self.model = with_augmentation(cfg, model).eval()
        self.batch_size = batch_size
        self.num_steps: int = getattr(self.model, "num_steps", 0)
        self._tiling = None
        if not cfg.PREDICT.TILE and cfg.PREDICT.TILE_OVERLAP != Tiling.overlap:
            raise ValueError("PREDICT.TILE_OVERLAP has no effect without PREDICT.TILE")
        if cfg.PREDICT.TILE:
            self._tiling = Tiling(cfg.PREDICT.TILE, cfg.PREDICT.TILE_OVERLAP)
            self.num_steps = 0  # merged boxes have the last step's score
        self._format = cfg.INPUT.FORMAT
        self._augmentations = T.AugmentationList(build_size_augmentations(cfg, is_train=False))
        classes = choose_classes(cfg, stored, class_names)
        self.class_names = classes.names
        self._category_ids = classes.ids
        counts = class_counts(cfg).values()
        number = next(iter(counts), len(self.class_names))
        self._lowest_scores = _lowest_scores(cfg.PREDICT.SCORE_THRESH, number)

    @classmethod
    def from_config(
        cls,
        config: str | os.PathLike | CfgNode,
        *,
        weights: str | os.PathLike | None = None,
        device: str | None = None,
        opts: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        batch_size: int = 1,
    ) -> Predictor:
        """A predictor from the name of a config, with weights.

        No dataset is needed: where the config's is not at hand the names of the classes come from
        the checkpoint.

        Args:
            config: what :func:`resobj_d2.config.load_config` takes, or a config.
            weights: checkpoint, in place of the config's ``MODEL.WEIGHTS``.
            device: "cpu", "cuda", "cuda:1"; in place of ``MODEL.DEVICE``.
            opts: alternating keys and values that change the config.
            class_names, batch_size: see the class.

        Raises:
            ValueError, OSError, CheckpointError: as the class and ``load_config``.
        """
        own = {"MODEL.WEIGHTS": weights, "MODEL.DEVICE": device}
        given = [x for key, value in own.items() if value is not None for x in (key, str(value))]
        if isinstance(config, CfgNode):
            cfg = config.clone()
            cfg.defrost()
            merge_overrides(cfg, [*opts, *given])
            cfg.freeze()
        else:
            cfg = load_prediction_config(os.fspath(config), [*opts, *given])
        return cls(cfg, class_names=class_names, batch_size=batch_size)

    def __call__(
        self, images: SingleImage | Iterable[SingleImage], *, channels: str | None = None
    ) -> Instances | list[Instances]:
        """Detect objects.

        Args:
            images: one image or an iterable of them. A path; a Pillow image; an array (H, W, 3) of
                uint8, where (H, W) is grey and a fourth channel, alpha, is left out; or a tensor
                (3, H, W) of uint8, as torchvision reads it.
            channels: "RGB" or "BGR", the order of colour arrays and tensors. There is no default:
                OpenCV and Detectron2's ``DefaultPredictor`` mean BGR, Pillow, torchvision and
                matplotlib RGB, and a wrong guess shows in nothing but worse detections.

        Returns:
            For one image Detectron2's ``Instances`` with ``pred_boxes`` in pixels of the image,
            ``scores`` and ``pred_classes``, on the CPU, best first; for an iterable a list of them.
            Files and Pillow images are turned upright as their EXIF data say, and boxes are in
            pixels of that; ``image_size`` is its (height, width).

        Raises:
            ImageError: an image cannot be used; the message names the file or the position.
            TypeError: something is no image.
        """
        if is_single(images):
            return self._detect_one(images, channels, every_step=False)[1][-1]
        return [steps[-1] for steps in self._detect_all(images, channels, every_step=False)]

    def per_step(
        self, images: SingleImage | Iterable[SingleImage], *, channels: str | None = None
    ) -> list[Instances] | list[list[Instances]]:
        """Detections at steps 0..T of Residual Objectness, for one image or an iterable.

        Each also has the objectness after every step, as ``objectness_step<t>_score``. One entry
        for a model without Residual Objectness. Arguments and errors as for a call.
        """
        if is_single(images):
            return self._detect_one(images, channels, every_step=True)[1]
        return self._detect_all(images, channels, every_step=True)

    def to_dicts(self, detections: Instances | Iterable) -> list:
        """Detections as plain dicts, which ``json`` can write.

        Args:
            detections: what a call or :meth:`per_step` returns.

        Returns:
            For ``Instances`` a list with a dict for each detection: ``box`` [x0, y0, x1, y1] in
            pixels, ``score``, ``class_index``, ``class_name`` and ``factors``, the probabilities
            behind the score by name (empty where the score is the class's alone). ``mask`` (COCO's
            run lengths) and ``keypoints`` [[x, y, score], ...] where the model has them. For a list
            a list of these.
        """
        if isinstance(detections, Instances):
            return instances_to_dicts(detections, self.class_name)
        return [self.to_dicts(x) for x in detections]

    def read(self, path: str | os.PathLike) -> np.ndarray:
        """An image file as (H, W, 3) uint8 RGB, turned upright as its EXIF data say.

        Raises:
            ImageError: it is missing, damaged or not an image.
        """
        return read_picture(path)

    def detect(
        self, image: SingleImage, *, channels: str | None = None
    ) -> tuple[np.ndarray, list[Instances]]:
        """The image as (H, W, 3) uint8 RGB, and its detections as :meth:`per_step` gives them.

        Raises:
            ImageError, TypeError: as a call.
        """
        return self._detect_one(image, channels, every_step=True)

    def model_input(self, rgb: np.ndarray, *, name: str = "the image") -> dict:
        """A picture as the model takes it: resized, with channels in the order of ``INPUT.FORMAT``.

        Args:
            rgb: (H, W, 3) uint8.
            name: what a message calls it.

        Returns:
            ``image`` (3, H', W') uint8, and ``height`` and ``width``, those of ``rgb``.

        Raises:
            ImageError: it is too narrow to be resized.
        """
        height, width = rgb.shape[:2]
        augmented = T.AugInput(rgb_to_format(rgb, self._format))
        try:
            self._augmentations(augmented)
        except ValueError as error:  # so narrow that nothing is left of a side
            raise ImageError(
                f"{name}: {width}x{height} pixels cannot be resized for the model: {error}"
            ) from error
        pixels = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return {"image": pixels, "height": height, "width": width}

    def class_name(self, number: int) -> str:
        """The name of a class 0..K-1, "class 3" where none is known."""
        return self.class_names[number] if number < len(self.class_names) else f"class {number}"

    def categories(self) -> list[dict]:
        """COCO's list of categories; empty without class names."""
        return [
            {"id": self.category_id(number), "name": name}
            for number, name in enumerate(self.class_names)
        ]

    def category_id(self, number: int) -> int:
        """The dataset's id of a class 0..K-1.

        Raises:
            ValueError: the dataset has no such class.
        """
        if not self._category_ids:
            return number
        if number not in self._category_ids:
            raise ValueError(
                f"the model found class {number}, but the dataset of DATASETS.TEST has "
                f"{counted(len(self._category_ids), 'class')}: the model was made for other classes"
            )
        return self._category_ids[number]

    def _detect_one(
        self, image: SingleImage, channels: str | None, *, every_step: bool
    ) -> tuple[np.ndarray, list[Instances]]:
        name = _name(image, "the image")
        rgb = to_rgb(image, channels=channels, name=name)
        return rgb, self._detect([rgb], [name], every_step=every_step)[0]

    def _detect_all(
        self, images: Iterable[SingleImage], channels: str | None, *, every_step: bool
    ) -> list[list[Instances]]:
        """The steps of each image. Only the images of one batch are in memory at a time."""
        results: list[list[Instances]] = []
        for batch in in_batches(images, self.batch_size):
            names = [_name(x, f"images[{len(results) + i}]") for i, x in enumerate(batch)]
            pictures = [
                to_rgb(image, channels=channels, name=name)
                for image, name in zip(batch, names, strict=True)
            ]
            results += self._detect(pictures, names, every_step=every_step)
        return results

    @torch.no_grad()
    def _detect(
        self, pictures: list[np.ndarray], names: list[str], *, every_step: bool
    ) -> list[list[Instances]]:
        """The steps of each (H, W, 3) RGB picture, from one forward unless it is tiled."""
        if self._tiling is not None:
            return [
                [self._kept(self._tiled(rgb, name, self._tiling))]
                for rgb, name in zip(pictures, names, strict=True)
            ]
        batch = [
            self.model_input(rgb, name=name) for rgb, name in zip(pictures, names, strict=True)
        ]
        if every_step and self.num_steps:
            steps = self.model.detections_per_step(batch)
        else:
            steps = [self.model(batch)]
        return [[self._kept(_instances(step[i])) for step in steps] for i in range(len(batch))]

    def _tiled(self, rgb: np.ndarray, name: str, tiling: Tiling) -> Instances:
        """The detections in all tiles of a picture, merged."""
        height, width = rgb.shape[:2]
        windows = tiling.windows(height, width)
        parts: list[Instances] = []
        for some in in_batches(windows, self.batch_size):
            crops = [rgb[y1:y2, x1:x2] for x1, y1, x2, y2 in some]
            outputs = self.model([self.model_input(crop, name=name) for crop in crops])
            parts += [_instances(output) for output in outputs]
        return tiling.merge(parts, windows, height, width)

    def _kept(self, detections: Instances) -> Instances:
        """Those that reach the score of their class."""
        lowest = self._lowest_scores
        if not len(lowest):
            return detections
        if len(lowest) > 1:
            lowest = lowest[detections.pred_classes]
        return detections[detections.scores >= lowest]


def load_prediction_config(
    config_file: str, opts: Sequence[str] = (), *, imports: Sequence[str] = ()
) -> CfgNode:
    """:func:`resobj_d2.config.load_config` for prediction, which needs no dataset.

    Where the datasets that the file names cannot be used here, a warning says why and they are
    left out: they would give the names of the classes alone, which checkpoints carry too. Datasets
    that ``opts`` names must be usable.

    Raises:
        ValueError, OSError, ImportError: as ``load_config``.
    """
    try:
        return load_config(config_file, opts, training=False, imports=imports)
    except (OSError, ValueError) as error:
        if any(key.startswith("DATASETS.") for key in opts[::2]):
            raise
        without = [*opts, "DATASETS.REGISTER", "[]", "DATASETS.TEST", "()"]
        # Fails as before where the datasets are not the reason.
        cfg = load_config(config_file, without, training=False, imports=imports)
        logger.warning("predicting without the config's datasets: %s", error)
        return cfg


def _name(image: SingleImage, otherwise: str) -> str:
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else otherwise


def _load_model(cfg: CfgNode) -> tuple[nn.Module, list[dict]]:
    """The model with its weights, and the classes that the checkpoint carries."""
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "MODEL.WEIGHTS is empty, so there is no trained model to predict with: "
            "give --weights FILE, or set MODEL.WEIGHTS"
        )
    with explained_feature_maps(cfg):
        model = take_single_cells(build_model(cfg))
    extra = ResObjCheckpointer(model, strict=True, cfg=cfg).load(cfg.MODEL.WEIGHTS)
    return model, extra.get("categories", [])


def _lowest_scores(values: Sequence[float], num_classes: int) -> torch.Tensor:
    """The value of ``PREDICT.SCORE_THRESH``, for each class or for all of them."""
    if len(values) > 1 and num_classes and len(values) != num_classes:
        raise ValueError(
            f"PREDICT.SCORE_THRESH has {len(values)} scores for {counted(num_classes, 'class')}: "
            "give one for each class, one for all, or []"
        )
    if not all(0 <= value <= 1 for value in values):
        raise ValueError(f"PREDICT.SCORE_THRESH must be scores from 0 to 1, got {list(values)}")
    return torch.tensor(list(values), dtype=torch.float32)


def _instances(output: dict) -> Instances:
    if "instances" not in output:
        raise ValueError(
            f"the model returns no 'instances' but {sorted(output)}: it is not a detector"
        )
    return output["instances"].to("cpu")
