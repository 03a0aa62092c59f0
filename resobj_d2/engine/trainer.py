"""Detectron2's trainer with this package's checkpoints, evaluators and hooks."""

from __future__ import annotations

import logging
import os
import weakref
from collections import OrderedDict

from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.compat import TRAINER_SAVES_OPTIMIZER, ddp_on_cpu
from resobj_d2.data.categories import dataset_categories
from resobj_d2.data.mapper import ImageErrorMapper, build_test_mapper, build_train_mapper
from resobj_d2.data.register import check_available, training_records
from resobj_d2.evaluation import build_evaluator, check_evaluators

from .ema import WeightAverage, WeightAverageHook
from .hooks import NonFiniteLossGuard, StatisticsHook
from .multi_scale import MultiScale
from .schedule import build_schedule

__all__ = ["Trainer", "evaluate"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` for this package's detectors, and Detectron2's on COCO and VOC data."""

    def __init__(self, cfg) -> None:
        check_evaluators(cfg)
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        with ddp_on_cpu(cfg.MODEL.DEVICE):
            super().__init__(cfg)

    def build_hooks(self) -> list:
        # DefaultTrainer builds its checkpointer just before its hooks, which keep it.
        self.weight_average = self._build_weight_average()
        saved = {"trainer": weakref.proxy(self)}
        if self.weight_average is not None:
            saved["ema"] = self.weight_average
        self.checkpointer = ResObjCheckpointer(
            self._trainer.model,
            self.cfg.OUTPUT_DIR,
            categories=dataset_categories(self.cfg.DATASETS.TRAIN),
            **saved,
        )
        own = [
            NonFiniteLossGuard(output_dir=self.cfg.OUTPUT_DIR),
            StatisticsHook(on_end=self._draw_curves),
        ]
        multi_scale = MultiScale.from_config(self.cfg)
        if multi_scale is not None:
            own.append(multi_scale)
        stock = super().build_hooks()
        if self.weight_average is not None:
            stock = self._with_weight_average(stock)
        writer = next((i for i, h in enumerate(stock) if isinstance(h, hooks.PeriodicWriter)), None)
        if writer is None:  # not the main process
            return stock + own
        return [*stock[:writer], *own, *stock[writer:]]

    def _build_weight_average(self) -> WeightAverage | None:
        decay = self.cfg.SOLVER.EMA_DECAY
        if decay == 0:
            return None
        if self.cfg.TEST.PRECISE_BN.ENABLED:
            raise ValueError(
                "TEST.PRECISE_BN measures the statistics of the weights, but with SOLVER.EMA_DECAY "
                "their averages are evaluated: turn one of them off"
            )
        return WeightAverage(self._trainer.model, decay=decay)

    def _with_weight_average(self, stock: list) -> list:
        """Detectron2's hooks after one that averages; they evaluate the averages."""

        def evaluate_average() -> OrderedDict:
            with self.weight_average.applied():
                self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        evaluation = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, evaluate_average)
        changed = [evaluation if isinstance(h, hooks.EvalHook) else h for h in stock]
        return [WeightAverageHook(self.weight_average), *changed]

    def state_dict(self) -> dict:
        """What a checkpoint keeps of the trainer, the optimizer's state among it."""
        state = super().state_dict()
        if not TRAINER_SAVES_OPTIMIZER:
            state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        if not TRAINER_SAVES_OPTIMIZER and "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])

    def train(self) -> OrderedDict | None:
        """Run the loop; the results of the last evaluation, None without ``DATASETS.TEST``.

        Detectron2 returns them only where ``TEST.EXPECTED_RESULTS`` is set.
        """
        super().train()
        return getattr(self, "_last_eval_results", None)

    def _draw_curves(self) -> None:
        from resobj_d2.plots.objectness_curves import plot_objectness_curves

        output = os.path.join(self.cfg.OUTPUT_DIR, "objectness_curves.png")
        if plot_objectness_curves(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"), output):
            logger.info("Objectness curves are in %s", output)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_schedule(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        mapper = ImageErrorMapper(build_train_mapper(cfg))
        return build_detection_train_loader(cfg, mapper=mapper, dataset=training_records(cfg))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str):
        mapper = ImageErrorMapper(build_test_mapper(cfg))
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str, output_folder: str | None = None):
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, folder)


def evaluate(cfg, *, resume: bool = False) -> OrderedDict:
    """Evaluate ``MODEL.WEIGHTS`` on ``DATASETS.TEST``; the weights must fit the model.

    Args:
        resume: evaluate the last checkpoint of ``OUTPUT_DIR`` instead, where there is one.

    Returns:
        Detectron2's results, ``{"bbox": {"AP": ...}}``, by dataset where there are several.
    """
    check_available(cfg.DATASETS.TEST, "DATASETS.TEST")
    model = Trainer.build_model(cfg)
    checkpointer = ResObjCheckpointer(model, save_dir=cfg.OUTPUT_DIR, strict=True)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise ValueError("evaluation needs trained weights: give MODEL.WEIGHTS <checkpoint>")
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
