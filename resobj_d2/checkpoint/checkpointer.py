"""Checkpoints: Detectron2's checkpointer with clear errors and maps from other layouts."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode

from resobj_d2.data.categories import category_names
from resobj_d2.process import replacing
from resobj_d2.weight_files import (
    CheckpointError,
    DamagedCheckpointError,
    check_archive,
    read_model_zoo_pickle,
    read_safetensors,
    torch_reason,
    why_unreadable,
)

from .about import about, check_about
from .darknet_file import DarknetWeightsError
from .other_toolkits import KNOWN_LAYOUTS, convert_other_toolkit
from .vgg16 import (
    LAST_CONVOLUTION,
    convert_vgg16,
    is_vgg16_rcnn,
    rename_vgg16_for_rcnn,
    vgg16_prefix,
)
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

_NUMBERED = re.compile(r"model_\d{7,}\.pth")
_FINAL = "model_final.pth"


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
    - loads torchvision's VGG16 into the backbone of an SSD, and what else
      :data:`.other_toolkits.KNOWN_LAYOUTS` lists;
    - loads Darknet's files into a YOLOv3 or into the DarkNet of any detector, and ``.safetensors``;
    - runs nothing of what a file holds: pickles may have arrays and containers alone;
    - tells a missing, truncated or damaged file from a wrong one;
    - refuses, with ``strict``, a file that lacks parameters of the model or has them in other
      shapes. Detectron2 leaves such layers at their random values, which suits fine-tuning, but
      an evaluation would report the score of a random classifier. It also refuses NaN and infinite
      weights, and a model trained on other pixels; without, these are warnings;
    - writes a checkpoint beside the file of that name and puts it in its place when it is complete,
      so that a run that is killed meanwhile loses nothing;
    - resumes from the newest checkpoint that can be read where ``last_checkpoint`` is damaged;
    - saves, given ``ema=WeightAverage(model, ...)``, the averages as the model and the weights
      themselves in ``ema``;
    - saves, given ``categories``, the classes 0..K-1 as ``{"id": ..., "name": ...}``, so that a
      checkpoint knows their names where the training data are not at hand, and, given ``cfg``, the
      package's version and how pictures reach the model, as ``about``. ``load`` returns them with
      the other extra data.

    Attributes:
        last_saved: path of the last checkpoint that this object wrote; "" before the first.
        written: names of the numbered checkpoints that this run and the one that it resumed from
            have written, the oldest first. Checkpoints have them as ``written``.
    """

    def __init__(
        self,
        model,
        save_dir: str = "",
        *,
        strict: bool = False,
        categories: Sequence[dict] = (),
        cfg: CfgNode | None = None,
        **kwargs,
    ):
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict
        self.categories = list(categories)
        self.cfg = cfg
        self.last_saved = ""
        self.written: list[str] = []
        self._readable: dict[tuple, str] = {}
        self._said: set[str] = set()

    def description(self) -> dict:
        """What a checkpoint of this object holds besides states: ``categories`` and ``about``."""
        content: dict = {}
        if self.categories:
            content["categories"] = self.categories
        if self.cfg is not None:
            content["about"] = about(self.cfg)
        return content

    def save(self, name: str, **kwargs) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        file = f"{name}.pth"
        path = os.path.join(self.save_dir, file)
        if _NUMBERED.fullmatch(file):
            self.written = [*(x for x in self.written if x != file), file]
        kwargs = {**self.description(), "written": list(self.written), **kwargs}
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
        try:
            extra = super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # Detectron2 main forgets it after an error
        if self.cfg is not None:
            check_about(extra.get("about"), self.cfg, strict=self.strict)
        stored, own = category_names(extra.get("categories")), category_names(self.categories)
        if stored and own and stored != own:
            self.logger.warning(
                "%s was trained for the classes %s; now they are %s",
                path, ", ".join(stored), ", ".join(own),
            )  # fmt: skip
        return extra

    def has_checkpoint(self) -> bool:
        """Whether there is something to resume from, be it readable or not."""
        if "://" in self.save_dir:
            return super().has_checkpoint()
        return bool(self._to_resume())

    def get_checkpoint_file(self) -> str:
        """The checkpoint that ``last_checkpoint`` names, else the newest that can be read.

        Returns:
            Its path; "" where there is none.

        Raises:
            DamagedCheckpointError: there are some, and none can be read.
        """
        if "://" in self.save_dir:
            return super().get_checkpoint_file()
        candidates = self._to_resume()
        problems = []
        for path in candidates:
            problem = self._problem(path)
            if not problem:
                for text in problems:
                    self._warn_once(f"{text}; instead {path} is used")
                return str(path)
            problems.append(problem)
        if candidates:
            raise DamagedCheckpointError(f"nothing to resume from: {'; '.join(problems)}")
        return ""

    def _to_resume(self) -> list[Path]:
        """Checkpoints of a run: first the one that ``last_checkpoint`` names, then by age."""
        folder = Path(self.save_dir or ".")
        # Of a run: weights from elsewhere may lie in its folder too.
        names = [p for p in folder.glob("model_*.pth") if _NUMBERED.fullmatch(p.name)]
        files = [p for p in (*names, folder / _FINAL) if p.is_file()]
        files.sort(key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True)
        tag = folder / "last_checkpoint"
        if not tag.is_file():
            return files
        with tag.open(encoding="utf-8", errors="replace") as stream:
            name = stream.read(4096).strip()
        # A name, not a path: what lies elsewhere is not of this run.
        if name and name == os.path.basename(name) and (folder / name).is_file():
            return [folder / name, *(p for p in files if p.name != name)]
        if files:
            what = f"names {name!r:.80}, which is not in its folder" if name else "is empty"
            self._warn_once(f"{tag} {what}; the newest checkpoint there is used")
        return files

    def _warn_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.logger.warning("%s", text)

    def _problem(self, path: Path) -> str:
        """:func:`why_unreadable`, asked once for each state of a file."""
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        if key not in self._readable:
            ours = _NUMBERED.fullmatch(path.name) or path.name == _FINAL
            self._readable[key] = why_unreadable(str(path), of_run=bool(ours))
        return self._readable[key]

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """As Detectron2's; where the last checkpoint is damaged, the newest that can be read."""
        if resume and self.has_checkpoint():
            extra = self.load(self.get_checkpoint_file())
            names = extra.get("written")  # those of earlier versions have none
            names = names if isinstance(names, list) else []
            self.written = [name for name in names if _NUMBERED.fullmatch(str(name))]
            return extra
        return self.load(path, checkpointables=[])

    def _load_file(self, filename: str) -> dict:
        loaded = self._read(filename)
        if not isinstance(loaded["model"], dict):
            raise DamagedCheckpointError(
                f"{os.path.abspath(filename)} is not a checkpoint: it holds a "
                f"{type(loaded['model']).__name__}, not a dict of weights"
            )
        other = next((name for name in loaded["model"] if not isinstance(name, str)), None)
        if other is not None:
            raise DamagedCheckpointError(
                f"{os.path.abspath(filename)} is not a checkpoint: {other!r:.40} is no name of a "
                "weight"
            )
        try:
            loaded["model"] = self._renamed(loaded["model"])
        except ValueError as error:
            raise CheckpointError(f"{os.path.abspath(filename)}: {error}") from None
        return loaded

    def _read(self, filename: str) -> dict:
        if is_darknet_file(filename):
            try:
                return {"model": read_darknet_state(filename, self.model)}
            except DarknetWeightsError as error:  # names the file and the bytes
                raise CheckpointError(str(error)) from error
        if filename.endswith(".pkl"):
            return read_model_zoo_pickle(filename)
        if filename.endswith(".safetensors"):
            return read_safetensors(filename)
        check_archive(filename)
        try:
            return super()._load_file(filename)
        except Exception as error:  # torch.load raises whatever the bytes lead it to
            raise DamagedCheckpointError(torch_reason(filename, error)) from error

    def _renamed(self, weights: dict) -> dict:
        """Weights of another layout in that of the model."""
        own = self.model.state_dict()
        names = [name.removeprefix("module.") for name in weights]
        if any(name.startswith("head.cls_subnet.") for name in names) and any(
            name.startswith("streams.") for name in own
        ):
            return rename_retinanet_weights(weights)
        converted = convert_other_toolkit(weights, own)
        if converted is not None:
            what, weights = converted
            self.logger.info("the checkpoint is %s: its names are changed to this model's", what)
        prefix = vgg16_prefix(own)
        if prefix and LAST_CONVOLUTION in weights:
            return convert_vgg16(weights, prefix)
        if LAST_CONVOLUTION in weights and is_vgg16_rcnn(own):
            return rename_vgg16_for_rcnn(weights)
        if any(_RPN_NAMES[1] in name for name in own):
            return {name.replace(*_RPN_NAMES): value for name, value in weights.items()}
        return weights

    def _load_model(self, checkpoint: dict):
        before = self._not_finite()
        self._refuse_unknown_layout(checkpoint)
        incompatible = super()._load_model(checkpoint)
        if self.strict:
            self._refuse_random_layers(incompatible)
        broken = [name for name in self._not_finite() if name not in before]
        if broken:
            text = (
                f"the checkpoint has NaN or infinite values in {len(broken)} tensors, the first is "
                f"{broken[0]}: the training that wrote it had diverged; take an earlier one"
            )
            if self.strict:
                raise CheckpointError(text)
            self.logger.warning("%s", text)
        return incompatible

    def _refuse_unknown_layout(self, checkpoint: dict) -> None:
        """Of a file none of whose names is the model's; Detectron2 would load nothing of it."""
        weights = checkpoint["model"]
        if checkpoint.get("matching_heuristics") or not weights:
            return
        names = {name.removeprefix("module.") for name in weights}
        if names.isdisjoint(x.removeprefix("module.") for x in self.model.state_dict()):
            raise CheckpointError(
                f"none of the checkpoint's {len(names)} names, such as {min(names)}, is one of "
                f"the model's: it is another kind of model, or of another toolkit. Known are "
                f"{'; '.join(KNOWN_LAYOUTS)}"
            )

    def _not_finite(self) -> list[str]:
        state = self.model.state_dict()
        return [
            name
            for name, x in state.items()
            if x.is_floating_point() and not torch.isfinite(x).all()
        ]

    def _refuse_random_layers(self, incompatible) -> None:
        parameters = {name for name, _ in self.model.named_parameters()}
        other = {
            name: f"{name}: checkpoint {tuple(actual)}, model {tuple(expected)}"
            for name, actual, expected in incompatible.incorrect_shapes
        }
        # Detectron2 counts those of another shape as missing too.
        missing = [k for k in incompatible.missing_keys if k in parameters and k not in other]
        differences = []
        if other:
            differences.append(f"{_number(other)} of another shape ({_few(other.values())})")
        if missing:
            differences.append(f"{_number(missing)} not in the checkpoint ({_few(missing)})")
        if differences:
            raise CheckpointError(
                "the checkpoint was trained with another configuration (number of classes, "
                f"anchors, channels, method?): {', and '.join(differences)}. Take the config.yaml "
                "of its run"
            )


def _number(tensors: Sized) -> str:
    return "1 tensor is" if len(tensors) == 1 else f"{len(tensors)} tensors are"


def _few(texts: Iterable[str]) -> str:
    texts = list(texts)
    return "; ".join(texts[:3]) + ("; ..." if len(texts) > 3 else "")
