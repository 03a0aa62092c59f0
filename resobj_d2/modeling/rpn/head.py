"""The convolutions of a region proposal network with Residual Objectness."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from detectron2.config import configurable
from detectron2.modeling import RPN_HEAD_REGISTRY, build_anchor_generator
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from torch import Tensor

from resobj_d2.modeling.branches.objectness import ObjectnessBranch, ObjectnessPrediction
from resobj_d2.modeling.heads.predictors import HeadParts, SharedConv
from resobj_d2.modeling.heads.towers import ConvStack
from resobj_d2.options import build
from resobj_d2.structures import LevelMaps, TowerFeatures

__all__ = ["ResObjRPNHead"]


@RPN_HEAD_REGISTRY.register()
class ResObjRPNHead(StandardRPNHead):
    """Detectron2's RPN head, with an objectness refined in T steps (``MODEL.RESOBJ_RPN``).

    The objectness and its residual subnets are the dense detector's :class:`ObjectnessBranch`. Its
    base is a 1x1 convolution on the shared hidden feature, as in every RPN; a residual subnet is a
    3x3 convolution with ReLU and a 1x1 convolution. Without an objectness branch this is
    ``StandardRPNHead``, with the same parameter names.

    Args:
        objectness: the branch, or None for Detectron2's single 1x1 convolution.
        rpn_head: arguments of ``StandardRPNHead``.
    """

    @configurable
    def __init__(self, *, objectness: ObjectnessBranch | None = None, **rpn_head) -> None:
        super().__init__(**rpn_head)
        self.objectness = objectness
        if objectness is not None:
            del self.objectness_logits  # the branch's base takes its place

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        _check_levels(cfg, input_shape)
        options = super().from_config(cfg, input_shape)
        width = options["in_channels"]
        for channels in options["conv_dims"]:
            width = width if channels == -1 else channels
        parts = HeadParts(
            in_channels=[width] * len(input_shape),
            num_anchors=[options["num_anchors"]] * len(input_shape),
            make_predictor=partial(SharedConv, kernel_size=1),
            make_hidden=_hidden,
        )
        node, objectness = cfg.MODEL.RESOBJ_RPN.OBJECTNESS, None
        if node.ENABLED:
            objectness = build(ObjectnessBranch, node, num_classes=1, parts=parts)
        if objectness is not None and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN":
            raise ValueError(
                "Detectron2's RPN would only train the sum of all steps; for "
                "MODEL.RESOBJ_RPN.OBJECTNESS set MODEL.PROPOSAL_GENERATOR.NAME ResObjRPN"
            )
        return {**options, "objectness": objectness}

    @property
    def num_steps(self) -> int:
        """T."""
        return 0 if self.objectness is None else self.objectness.num_steps

    def predict(
        self, features: list[Tensor], *, every_step: bool = True
    ) -> tuple[ObjectnessPrediction, LevelMaps]:
        """The objectness of every step and the deltas.

        Args:
            features: L maps (N, C, H_l, W_l).
            every_step: False if only the last refinement is needed.
        """
        hidden = [self.conv(x) for x in features]
        deltas = LevelMaps([self.anchor_deltas(x) for x in hidden], channels=4)
        if self.objectness is None:
            maps = LevelMaps([self.objectness_logits(x) for x in hidden], channels=1)
            logits = maps.flatten().squeeze(-1)
            return ObjectnessPrediction(logits, logits.new_zeros((0, *logits.shape))), deltas
        tower = TowerFeatures(cls=hidden, box=hidden, pyramid=features)
        return self.objectness.predict(tower, every_step=every_step), deltas

    def score_logits(self, prediction: ObjectnessPrediction, step: int | None = None) -> Tensor:
        """(N, R) float32 logits o_step by which proposals are ranked; by default the last."""
        if self.objectness is None:
            return prediction.logits.float()
        return self.objectness.score_logits(prediction, step)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Like ``StandardRPNHead``: last logits (N, A, H_l, W_l), deltas (N, 4A, H_l, W_l)."""
        if self.objectness is None:
            return super().forward(features)
        prediction, deltas = self.predict(features, every_step=False)
        return deltas.view_per_anchor(self.score_logits(prediction)), deltas.levels


def _hidden(*, in_channels: Sequence[int], channels: Sequence[int], num_convs: int) -> ConvStack:
    return ConvStack(in_channels=in_channels, channels=channels[0], num_convs=num_convs)


def _check_levels(cfg, input_shape) -> None:
    """Raises for anchors and levels that shared layers cannot handle."""
    anchors = build_anchor_generator(cfg, input_shape)
    if len(set(anchors.num_anchors)) != 1:
        raise ValueError(
            "the RPN's layers are shared, so MODEL.ANCHOR_GENERATOR must give every level the same "
            f"number of anchors, got {list(anchors.num_anchors)}"
        )
    if anchors.box_dim != 4:
        raise ValueError(
            f"ResObjRPNHead supports axis-aligned boxes, got box_dim {anchors.box_dim}"
        )
    channels = [shape.channels for shape in input_shape]
    if len(set(channels)) != 1:
        raise ValueError(
            "the RPN's layers are shared, so MODEL.RPN.IN_FEATURES must have equal channels, got "
            f"{channels}"
        )
