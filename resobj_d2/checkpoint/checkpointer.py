"""Checkpoints: Detectron2's checkpointer with clear errors and maps from other layouts."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
from collections.abc import Sequence

import torch
from detectron2.checkpoint import DetectionCheckpointer

from resobj_d2.process import replacing

from .darknet_file import DarknetWeightsError
from .vgg16 import LAST_CONVOLUTION, convert_vgg16, vgg16_prefix
from .yolov3 import is_darknet_file, read_darknet_state

__all__ = ["CheckpointError", "ResObjCheckpointer", "rename_retinanet_weights"]

# Detectron2's RPN head -> ResObjRPNHead with an objectness branch.
_RPN_NAMES = ("rpn_head.objectness_logits.", "rpn_head.objectness.base.predictor.")
# Detectron2's RetinaNet -> ResObjDenseDetector. The layers inside are in the same order.
_RETINANET_NAMES = (
    (r"^head\.cls_subnet\.", "tower.cls."),
    (r"^head\.bbox_subnet\.", "tower.box."),
    (r"^head\.cls_score\.", "streams.anchors.stages.0.cls."),
    (r"^head\.bbox_pred\.", "streams.anchors.stages.0.box."),
)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, and why."""


def rename_retinanet_weights(weights: dict) -> dict:
    """Detectron2 RetinaNet parameter names to those of ``ResObjDenseDetector``."""

    def rename(name: str) -> str:
        name = name.removeprefix("module.")  # of a model saved inside DistributedDataParallel
        for pattern, replacement in _RETINANET_NAMES:
            name = re.sub(pattern, replacement, name)
        return name

    return {rename(name): value for name, value in weights.items()}


class ResObjCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which also

    - loads Detectron2 RetinaNet checkpoints into ``ResObjDenseDetector``, and the RPN of its other
      detectors into one with Residual Objectness;
    - loads torchvision's VGG16 into the backbone of an SSD;
    - loads Darknet's files into a YOLOv3 or into the DarkNet of any detector;
    - tells a missing or truncated file from a wrong one;
    - refuses, with ``strict``, a file that lacks parameters of the model or has them in other
      shapes. Detectron2 leaves such layers at their random values, which suits fine-tuning, but
      an evaluation would report the score of a random classifier;
    - writes a checkpoint beside the file of that name and puts it in its place when it is complete,
      so that a run that is killed meanwhile loses nothing;
    - saves, given ``ema=WeightAverage(model, ...)``, the averages as the model and the weights
      themselves in ``ema``;
    - saves, given ``categories``, the classes 0..K-1 as ``{"id": ..., "name": ...}``, so that a
      checkpoint knows their names where the training data are not at hand. ``load`` returns them
      with the other extra data.

    Attributes:
        last_saved: path of the last checkpoint that this object wrote; "" before the first.
    """

    def __init__(
        self,
        model,
        save_dir: str = "",
        *,
        strict: bool = False,
        categories: Sequence[dict] = (),
        **kwargs,
    ):
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict
        self.categories = list(categories)
        self.last_saved = ""

    def save(self, name: str, **kwargs) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        if self.categories:
            kwargs.setdefault("categories", self.categories)
        path = os.path.join(self.save_dir, f"{name}.pth")
        average = self.checkpointables.get("ema")
        with contextlib.nullcontext() if average is None else average.applied():
            if "://" in self.save_dir:  # a store that is not this machine's disk
                super().save(name, **kwargs)
            else:
                self._save_here(path, **kwargs)
        self.last_saved = path

    def _save_here(self, path: str, **kwargs) -> None:
        states = {key: x.state_dict() for key, x in self.checkpointables.items()}
        self.logger.info("Saving checkpoint to %s", path)
        with replacing(path, binary=True) as file:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, file)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
            return
        with replacing(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename)

    def load(self, path: str, *args, **kwargs) -> dict:
        # Detectron2 main understands "?matching_heuristics=True" behind a name.
        if path and "://" not in path and not os.path.isfile(path.split("?")[0]):
            raise FileNotFoundError(f"checkpoint not found: {os.path.abspath(path)}")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict:
        if is_darknet_file(filename):
            try:
                return {"model": read_darknet_state(filename, self.model)}
            except DarknetWeightsError as error:  # names the file and the bytes
                raise CheckpointError(str(error)) from error
        try:
            loaded = super()._load_file(filename)
        except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
            reason = "it is truncated or no checkpoint"
            if "weights_only" in str(error) and "Unsupported" in str(error):
                reason = (
                    "it holds Python objects besides tensors, which torch.load refuses; if you "
                    "trust the file, load it with weights_only=False and save its tensors"
                )
            raise CheckpointError(
                f"cannot read checkpoint {os.path.abspath(filename)} "
                f"({os.path.getsize(filename)} bytes): {reason}. The reader said: {error}"
            ) from error
        if not isinstance(loaded["model"], dict):
            raise CheckpointError(
                f"{os.path.abspath(filename)} is not a checkpoint: it holds a "
                f"{type(loaded['model']).__name__}, not a dict of weights"
            )
        try:
            loaded["model"] = self._renamed(loaded["model"])
        except ValueError as error:
            raise CheckpointError(f"{os.path.abspath(filename)}: {error}") from None
        return loaded

    def _renamed(self, weights: dict) -> dict:
        """Weights of another layout in that of the model."""
        own = self.model.state_dict()
        names = [name.removeprefix("module.") for name in weights]
        if any(name.startswith("head.cls_subnet.") for name in names) and any(
            name.startswith("streams.") for name in own
        ):
            return rename_retinanet_weights(weights)
        prefix = vgg16_prefix(own)
        if prefix and LAST_CONVOLUTION in weights:
            return convert_vgg16(weights, prefix)
        if any(_RPN_NAMES[1] in name for name in own):
            return {name.replace(*_RPN_NAMES): value for name, value in weights.items()}
        return weights

    def _load_model(self, checkpoint: dict):
        incompatible = super()._load_model(checkpoint)
        if self.strict:
            self._refuse_random_layers(incompatible)
        return incompatible

    def _refuse_random_layers(self, incompatible) -> None:
        rows = [
            f"  {name}: checkpoint {tuple(actual)}, model {tuple(expected)}"
            for name, actual, expected in incompatible.incorrect_shapes
        ]
        parameters = {name for name, _ in self.model.named_parameters()}
        rows += [
            f"  {k}: not in the checkpoint" for k in incompatible.missing_keys if k in parameters
        ]
        if rows:
            raise CheckpointError(
                "the checkpoint was trained with another configuration (number of classes, "
                "anchors, channels, method?):\n" + "\n".join(rows)
            )
