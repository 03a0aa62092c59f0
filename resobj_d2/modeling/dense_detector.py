"""The meta-architecture of all dense detectors; a method is a choice of slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn

from resobj_d2.compat import batch_images
from resobj_d2.options import build
from resobj_d2.precision import Float32Buffers
from resobj_d2.structures import GroundTruth, StreamOutput

from .build import TOWER_REGISTRY
from .build_stream import build_stream
from .contracts import Tower
from .heads.single_cell_norm import take_single_cells
from .postprocess import DensePostprocess, Scoring, to_instances
from .stream import DenseStream
from .training_pictures import is_due, put_training_picture

__all__ = ["ResObjDenseDetector"]


@META_ARCH_REGISTRY.register()
class ResObjDenseDetector(Float32Buffers):
    """Backbone, tower and dense streams, in Detectron2's input and output formats.

    Args:
        backbone: a Detectron2 backbone.
        in_features: names of its feature maps, finest first.
        num_classes: K.
        tower: see :class:`resobj_d2.modeling.contracts.Tower`.
        streams: what is predicted from the tower, by name.
        postprocess: turns candidates into detections.
        pixel_mean, pixel_std: per channel, in the order of the input images.
        input_format: that order, for pictures.
        vis_period: iterations between two pictures of the training; 0 for none.
        channels_last: keep weights and feature maps with the channels of a pixel side by side.
            Results are the same to rounding.

    After a training forward ``statistics`` holds detached scalars of that batch, on the device.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        in_features: Sequence[str],
        num_classes: int,
        tower: Tower,
        streams: dict[str, DenseStream],
        postprocess: DensePostprocess,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
        vis_period: int = 0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.in_features = list(in_features)
        self.num_classes = num_classes
        self.tower = tower
        self.streams = nn.ModuleDict(streams)
        self.postprocess = postprocess
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.input_format = input_format
        self.vis_period = vis_period
        self.statistics: dict[str, Tensor] = {}
        take_single_cells(self)
        if channels_last:  # a convolution's output is laid out as its weights are
            self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg) -> dict:
        dense = cfg.MODEL.DENSE
        if dense.NUM_CLASSES < 1:
            raise ValueError(f"MODEL.DENSE.NUM_CLASSES must be at least 1, got {dense.NUM_CLASSES}")
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        missing = [f for f in dense.IN_FEATURES if f not in shapes]
        if missing:
            raise ValueError(
                f"MODEL.DENSE.IN_FEATURES lists {missing}, but {cfg.MODEL.BACKBONE.NAME} "
                f"has {sorted(shapes)}"
            )
        levels = [shapes[f] for f in dense.IN_FEATURES]
        channels = [level.channels for level in levels]
        tower = build(TOWER_REGISTRY.get(dense.TOWER.NAME), dense.TOWER, in_channels=channels)
        nodes = {"anchors": dense} if dense.ANCHOR_BASED else {}
        if dense.ANCHOR_FREE.ENABLED:
            nodes["anchor_free"] = dense.ANCHOR_FREE
        if not nodes:
            raise ValueError("MODEL.DENSE needs ANCHOR_BASED or ANCHOR_FREE.ENABLED")
        streams = {
            name: build_stream(
                node,
                num_classes=dense.NUM_CLASSES,
                tower=tower,
                tower_node=dense.TOWER,
                pyramid_channels=channels,
                strides=[level.stride for level in levels],
            )
            for name, node in nodes.items()
        }
        return {
            "backbone": backbone,
            "in_features": dense.IN_FEATURES,
            "num_classes": dense.NUM_CLASSES,
            "tower": tower,
            "streams": streams,
            "postprocess": build(
                DensePostprocess, dense.POSTPROCESS, max_detections=cfg.TEST.DETECTIONS_PER_IMAGE
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
        }

    @property
    def device(self) -> torch.device:
        """Device of the parameters, to which images are sent."""
        return self.pixel_mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32, unless ``half()`` or ``bfloat16()`` was called.

        Images may be of any type. Boxes, scores and losses are in float32 in any case.
        """
        return next(self.backbone.parameters()).dtype

    @property
    def num_steps(self) -> int:
        """T of the residual objectness; 0 without one."""
        return max(stream.num_steps for stream in self.streams.values())

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: Detectron2's standard input: dicts with ``image`` (C, H, W),
                ``instances`` (training) and optionally the output ``height`` and ``width``.

        Returns:
            Training: named scalar losses. Otherwise per image ``{"instances": Instances}``
            with ``pred_boxes``, ``scores``, ``pred_classes`` in the output resolution.
        """
        images = self._preprocess(batched_inputs)
        outputs = self.predict(images, every_step=self.training)
        if self.training:
            losses = self._losses(outputs, self._ground_truth(batched_inputs))
            if self.vis_period and is_due(self.vis_period):
                self._put_picture(batched_inputs[0], images, outputs)
            return losses
        return self._detect(batched_inputs, images, outputs)

    @torch.no_grad()
    def detections_per_step(self, batched_inputs: list[dict]) -> list[list[dict]]:
        """Detections scored with the objectness after t = 0..T residuals, from one forward.

        Returns:
            T + 1 lists, each like that of :meth:`forward` at inference (ResObj, Figure 5). Each
            detection also has the objectness after every step as ``objectness_step<t>_score``.
        """
        return self.detections_with_outputs(batched_inputs)[0]

    @torch.no_grad()
    def detections_with_outputs(
        self, batched_inputs: list[dict]
    ) -> tuple[list[list[dict]], dict[str, StreamOutput], list[tuple[int, int]]]:
        """Detections at every step and what they were made from.

        Returns:
            T + 1 lists as of :meth:`detections_per_step`; the predictions by stream, in pixels of
            the network's input; and the (height, width) that each image has there.
        """
        images = self._preprocess(batched_inputs)
        outputs = self.predict(images)
        steps = [
            self._detect(batched_inputs, images, outputs, step=t) for t in range(self.num_steps + 1)
        ]
        return steps, outputs, images.image_sizes

    @property
    def scoring(self) -> Scoring:
        """How predictions become detections; may be replaced."""
        streams = self.streams.items()
        return Scoring(
            postprocess=self.postprocess,
            fusion={name: stream.fusion for name, stream in streams},
            stage_scores={name: stream.stage_scores for name, stream in streams},
        )

    @scoring.setter
    def scoring(self, scoring: Scoring) -> None:
        self.postprocess = scoring.postprocess
        for name, stream in self.streams.items():
            stream.fusion = scoring.fusion[name]
            stream.stage_scores = scoring.stage_scores[name]

    @torch.no_grad()
    def detections_per_scoring(
        self, batched_inputs: list[dict], scorings: Sequence[Scoring]
    ) -> list[list[dict]]:
        """Detections under several scorings, from one forward. The model keeps its own meanwhile.

        Returns:
            For each scoring, a list like that of :meth:`forward` at inference.
        """
        images = self._preprocess(batched_inputs)
        outputs = self.predict(images, every_step=False)
        return [
            self._detect(batched_inputs, images, outputs, scoring=scoring) for scoring in scorings
        ]

    def training_inputs(
        self, batched_inputs: list[dict]
    ) -> tuple[dict[str, StreamOutput], GroundTruth]:
        """What the losses of :meth:`forward` are computed from: predictions by stream, and objects.

        Args:
            batched_inputs: with ``instances``.
        """
        images = self._preprocess(batched_inputs)
        return self.predict(images), self._ground_truth(batched_inputs)

    def _preprocess(self, batched_inputs: list[dict]) -> ImageList:
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [self.normalised(x) for x in images]
        return batch_images(images, self.backbone)

    def normalised(self, images: Tensor) -> Tensor:
        """Pixels (..., 3, H, W) less the mean, by the deviation, in the type of the weights."""
        return ((images - self.pixel_mean) / self.pixel_std).to(self.dtype)

    def predict(self, images: ImageList, *, every_step: bool = True) -> dict[str, StreamOutput]:
        """Everything the network predicts for normalised images, by stream.

        Args:
            every_step: False if only the last refinement of the scores is needed; its predictors
                are then fused into one.
        """
        features = self.backbone(images.tensor)
        tower = self.tower([features[f] for f in self.in_features])
        return {name: stream(tower, every_step=every_step) for name, stream in self.streams.items()}

    def _ground_truth(self, batched_inputs: list[dict]) -> GroundTruth:
        if "instances" not in batched_inputs[0]:
            raise ValueError("training needs 'instances' in every input dict")
        for x in batched_inputs:
            self._check_classes(x)
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        return GroundTruth.from_lists(
            [x.gt_boxes.tensor for x in instances], [x.gt_classes for x in instances]
        )

    def _check_classes(self, inputs: dict) -> None:
        """Raises for class numbers the model does not have, while they are on the host."""
        classes = inputs["instances"].gt_classes
        if classes.device.type == "cpu" and len(classes):
            low, high = classes.aminmax()
            if low < 0 or high >= self.num_classes:
                name = inputs.get("file_name", inputs.get("image_id", "?"))
                raise ValueError(
                    f"image {name} has class numbers {int(low)}..{int(high)}, but "
                    f"MODEL.DENSE.NUM_CLASSES is {self.num_classes}"
                )

    def _losses(
        self, outputs: dict[str, StreamOutput], ground_truth: GroundTruth
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        self.statistics = {}
        for name, stream in self.streams.items():
            stream_losses, statistics = stream.losses(outputs[name], ground_truth)
            ending = "" if name == "anchors" else f"_{name}"
            losses.update({key + ending: loss for key, loss in stream_losses.items()})
            self.statistics.update({key + ending: x for key, x in statistics.items()})
        return losses

    @torch.no_grad()
    def _put_picture(
        self, inputs: dict, images: ImageList, outputs: dict[str, StreamOutput]
    ) -> None:
        as_seen = [{} for _ in images.image_sizes]  # not in the size of the file
        found = self._detect(as_seen, images, outputs)[0]["instances"]
        put_training_picture(inputs, found, self.input_format)

    def _detect(
        self,
        batched_inputs: list[dict],
        images: ImageList,
        outputs: dict[str, StreamOutput],
        step: int | None = None,
        scoring: Scoring | None = None,
    ) -> list[dict]:
        scoring = self.scoring if scoring is None else scoring
        streams = [
            (scoring.of_stream(name, stream), outputs[name])
            for name, stream in self.streams.items()
        ]
        candidates = scoring.postprocess(streams, step)
        results = []
        for inputs, size, detections in zip(
            batched_inputs, images.image_sizes, candidates, strict=True
        ):
            instances = to_instances(detections, size)
            height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
            results.append({"instances": detector_postprocess(instances, height, width)})
        return results
