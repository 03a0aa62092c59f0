"""Detectron2's trainer with this package's checkpoints, evaluators and hooks."""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections import OrderedDict
from inspect import getattr_static

from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.compat import TRAINER_SAVES_OPTIMIZER, ddp_on_cpu, without_default_logging
from resobj_d2.config import class_counts
from resobj_d2.data.categories import check_stored_classes, dataset_categories
from resobj_d2.data.class_checks import check_num_classes
from resobj_d2.data.register import check_available
from resobj_d2.data.train_loader import TrainLoader
from resobj_d2.evaluation import build_evaluator, check_evaluators
from resobj_d2.modeling.feature_maps import explained_feature_maps
from resobj_d2.modeling.heads.single_cell_norm import take_single_cells
from resobj_d2.process import hold_folder, release_folder, replacing

from .accumulation import accumulated_step
from .best import BestCheckpoint, check_metric
from .checkpoints import EarlyStop, KeepLast, TrainingEnded
from .earlier_run import refuse_earlier_run
from .ema import WeightAverage, WeightAverageHook
from .hooks import EvaluationHook, NonFiniteLossGuard, StatisticsHook
from .interrupt import EvaluationStopped, InterruptHook
from .loaders import build_test_loader, build_train_loader
from .multi_scale import MultiScale
from .process_state import ProcessState
from .progress import ProgressHook, evaluate_with_progress
from .randomness import choose_seed, seed_iteration
from .schedule import build_schedule
from .startup import log_by_default, make_output_folder
from .summary import (
    VALIDATION,
    Contents,
    evaluation_summary,
    final_summary,
    results_line,
    results_table,
    start_summary,
    test_contents,
    write_model,
)
from .validation import validation_losses, validation_records
from .writers import WRITERS

__all__ = ["Trainer", "evaluate"]

logger = logging.getLogger(__name__)

# Of a script it is not known what it would understand.
RESUME_IN_PYTHON = "call trainer.resume_or_load(resume=True) before trainer.train()"


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` for this package's detectors, and Detectron2's on COCO and VOC data.

    Where nothing has set up logging, it logs as :func:`run_setup` does. Ctrl-C ends :meth:`train`
    with a checkpoint to resume from. A run that was killed and resumed from its last checkpoint
    ends with the weights of one that was not, on CPUs to the bit.

    Args:
        cfg: of :func:`resobj_d2.config.load_config`. ``OUTPUT_DIR`` is made where it is missing.
        how_to_resume: what is printed after Ctrl-C.

    Attributes:
        seed: of all random numbers of the run: ``SEED``, or what was drawn where that is -1.
    """

    def __init__(self, cfg, *, how_to_resume: str = RESUME_IN_PYTHON) -> None:
        check_num_classes(class_counts(cfg), [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        check_evaluators(cfg)
        if cfg.TEST.VALIDATION_LOSS:
            validation_records(cfg)
        stock = Trainer.__dict__["build_evaluator"], DefaultTrainer.__dict__["test"]
        if stock == tuple(getattr_static(type(self), x) for x in ("build_evaluator", "test")):
            check_metric(cfg)
        make_output_folder(cfg.OUTPUT_DIR)
        if comm.is_main_process():
            hold_folder(cfg.OUTPUT_DIR)
        self._how_to_resume = how_to_resume
        self._loaded = ""
        self._resumes = False
        self._pictures: list[str] = []
        self._test_contents: dict[str, Contents] = {}
        self.seed = choose_seed(cfg.SEED)
        seed_all_rng(self.seed + comm.get_rank())
        log_by_default()
        with ddp_on_cpu(cfg.MODEL.DEVICE), without_default_logging():
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
            cfg=self.cfg,
            **saved,
        )
        self.best = BestCheckpoint(self.checkpointer, metric=self.cfg.TEST.BEST_METRIC)
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        process_state = ProcessState(self._trainer.model, period=period)
        self.interrupt = InterruptHook(
            checkpointer=self.checkpointer,
            how_to_resume=self._how_to_resume,
            before_saving=process_state.collect,
        )
        stock = super().build_hooks()
        evaluation = next(i for i, hook in enumerate(stock) if isinstance(hook, hooks.EvalHook))
        before, after = stock[:evaluation], stock[evaluation + 1 :]
        # Behind PreciseBN, whose passes move running means; in front of what writes checkpoints.
        writes = [isinstance(hook, hooks.PeriodicCheckpointer) for hook in before]
        index = writes.index(True) if any(writes) else len(before)
        before.insert(index, process_state)
        if self.weight_average is not None:
            before.insert(0, WeightAverageHook(self.weight_average))
        if comm.is_main_process():
            if self.cfg.SOLVER.CHECKPOINT_KEEP:
                keep = self.cfg.SOLVER.CHECKPOINT_KEEP
                before.append(KeepLast(self.checkpointer, number=keep))
            before.append(ProgressHook())
        return [
            *before,
            self.interrupt,
            EvaluationHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate),
            *self._own_hooks(),
            *after,  # the main process's writers
            *self._early_stop(),
        ]

    def _early_stop(self) -> list:
        patience, period = self.cfg.TEST.PATIENCE, self.cfg.TEST.EVAL_PERIOD
        return [EarlyStop(self.best, patience=patience, period=period)] if patience else []

    def build_writers(self) -> list:
        """Detectron2's, and those of ``WRITERS``."""
        trainer = weakref.proxy(self)
        own = [
            WRITERS[name](self.cfg.OUTPUT_DIR, start=lambda: trainer.start_iter)
            for name in dict.fromkeys(self.cfg.WRITERS)
        ]
        return [*super().build_writers(), *own]

    def _own_hooks(self) -> list:
        own = [
            NonFiniteLossGuard(output_dir=self.cfg.OUTPUT_DIR),
            StatisticsHook(on_end=self._draw_curves),
        ]
        multi_scale = MultiScale.from_config(self.cfg)
        return own if multi_scale is None else [*own, multi_scale]

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

    def _evaluate(self) -> OrderedDict:
        """For the hook: evaluate the weights, or their averages, and remember the best ones."""
        average = self.weight_average
        results = None
        with contextlib.nullcontext() if average is None else average.applied():
            with contextlib.suppress(EvaluationStopped):
                results = evaluate_with_progress(
                    type(self),
                    self.cfg,
                    self.model,
                    contents=self._test_contents,
                    check=self.interrupt.check_evaluation,
                )
                self._add_validation(results)
                if comm.is_main_process():
                    self._note(results)
        if results is None:
            self.interrupt.stop()
        self._last_eval_results = results
        return results

    def _add_validation(self, results: OrderedDict) -> None:
        if not self.cfg.TEST.VALIDATION_LOSS:
            return
        losses = validation_losses(self.cfg, self.model, seed=self.seed)
        if losses and comm.is_main_process():
            results[VALIDATION] = losses

    def _note(self, results: OrderedDict) -> None:
        """On the main process, with the evaluated weights in the model."""
        at_end = self.iter >= self.max_iter
        iteration = min(self.iter, self.max_iter - 1)
        # One evaluation at the end is of the checkpoint that was written before it.
        only = at_end and self.cfg.TEST.EVAL_PERIOD == 0
        file = self.checkpointer.get_checkpoint_file() if only else None
        self.best.consider(results, iteration=iteration, file=file)
        if results and not at_end:
            logger.info("Evaluation after iteration %d: %s", iteration + 1, results_line(results))

    def after_train(self) -> None:
        """The hooks' end, counted as the last iteration even if nothing was left to train."""
        self.iter = min(self.iter, self.max_iter)  # Detectron2's is one more if nothing was left
        super().after_train()

    def state_dict(self) -> dict:
        """What a checkpoint keeps of the trainer, the optimizer's state among it."""
        state = super().state_dict()
        if not TRAINER_SAVES_OPTIMIZER:
            state["_trainer"] = self._trainer.state_dict()
        state["seed"] = self.seed
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        if not TRAINER_SAVES_OPTIMIZER and "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])
        if self.cfg.SEED < 0:
            self.seed = state_dict.get("seed", self.seed)  # those of earlier versions have none

    def resume_or_load(self, resume: bool = True) -> None:
        self._resumes = resume
        super().resume_or_load(resume=resume)
        self._loaded = self.cfg.MODEL.WEIGHTS
        if resume and self.checkpointer.has_checkpoint():
            self._loaded = self.checkpointer.get_checkpoint_file()

    def train(self) -> OrderedDict | None:
        """Run the loop; the results of the last evaluation, None without ``DATASETS.TEST``.

        Detectron2 returns them only where ``TEST.EXPECTED_RESULTS`` is set.

        Raises:
            RunInterrupted: after Ctrl-C or SIGTERM, when a checkpoint was written. It is a
                ``SystemExit``.
            FolderInUse: another training writes to ``OUTPUT_DIR``.
            FileExistsError: it has checkpoints of a run that this one does not resume.
        """
        if not self._resumes:
            refuse_earlier_run(self.cfg.OUTPUT_DIR, how_to_resume=RESUME_IN_PYTHON)
        log_by_default(self.cfg.OUTPUT_DIR)
        self._place_random_numbers()
        if comm.is_main_process():
            hold_folder(self.cfg.OUTPUT_DIR)
        try:
            if comm.is_main_process():
                self._begin()
            with self.interrupt.listening():
                super().train()
        except TrainingEnded as end:
            if comm.is_main_process():
                self._end_early(end.iteration)
        finally:
            release_folder(self.cfg.OUTPUT_DIR)
        results = getattr(self, "_last_eval_results", None)
        if comm.is_main_process():
            self._log_final_summary(results)
        return results

    def _place_random_numbers(self) -> None:
        """Images, augmentations and sizes from the first iteration on are those of the run."""
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.seed, self.data_loader.start = self.seed, self.start_iter
        for hook in self._hooks:
            if isinstance(hook, MultiScale):
                hook.seed = self.seed
            loader = getattr(hook, "_data_loader", None)  # PreciseBN's
            if isinstance(loader, TrainLoader):
                period = self.cfg.TEST.EVAL_PERIOD
                measured = self.start_iter // period if period else 0
                loader.seed = self.seed + 1  # other images than those just trained on
                loader.start = measured * self.cfg.TEST.PRECISE_BN.NUM_ITER

    def run_step(self) -> None:
        """One iteration, with random numbers of its own."""
        seed_iteration(self.seed, self.iter)
        number = self.cfg.SOLVER.ACCUMULATION_STEPS
        if number == 1:
            super().run_step()
            return
        self._trainer.iter = self.iter

        def seed_part(part: int) -> None:
            seed_iteration(self.seed, self.iter, part=part)

        accumulated_step(self._trainer, number=number, seed_part=seed_part)

    def _end_early(self, iteration: int) -> None:
        """After the last iteration of a run whose patience has ended."""
        if iteration >= self.start_iter:
            self.checkpointer.save("model_final", iteration=iteration)
        self._draw_curves()

    def _begin(self) -> None:
        with replacing(os.path.join(self.cfg.OUTPUT_DIR, "model.txt")) as file:
            write_model(self.checkpointer.model, file)
        self.best.resume(self.start_iter)
        if self.start_iter >= self.max_iter:
            last = os.path.basename(self.checkpointer.get_checkpoint_file())
            if last != "model_final.pth":  # it was killed between its last two checkpoints
                self.checkpointer.save("model_final", iteration=self.start_iter - 1)
        self._test_contents = test_contents(self.cfg)
        text = start_summary(
            self.cfg,
            self.model,
            train=getattr(self.data_loader, "contents", None),
            test=self._test_contents,
            start_iter=self.start_iter,
            weights=self._loaded,
            seed=self.seed,
        )
        logger.info("%s\n", text)

    def _log_final_summary(self, results: OrderedDict | None) -> None:
        text = final_summary(
            self.cfg,
            results,
            best=self.best.best,
            last=self.checkpointer.get_checkpoint_file(),
            pictures=self._pictures,
            iterations=min(self.iter + 1, self.max_iter),
        )
        logger.info("%s", text)

    def _draw_curves(self) -> None:
        from resobj_d2.plots.objectness_curves import plot_objectness_curves

        output = os.path.join(self.cfg.OUTPUT_DIR, "objectness_curves.png")
        if plot_objectness_curves(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"), output):
            self._pictures.append(output)

    @classmethod
    def build_model(cls, cfg):
        with explained_feature_maps(cfg):
            return take_single_cells(super().build_model(cfg))

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_schedule(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        """A :class:`TrainLoader`. A loader of another kind starts anew when a run is resumed."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str):
        return build_test_loader(cfg, dataset_name)

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
    checkpointer = ResObjCheckpointer(model, save_dir=cfg.OUTPUT_DIR, strict=True, cfg=cfg)
    weights = cfg.MODEL.WEIGHTS
    if resume and checkpointer.has_checkpoint():
        weights = checkpointer.get_checkpoint_file()
    if not weights:
        raise ValueError("no trained weights: give --weights FILE, or set MODEL.WEIGHTS")
    extra = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    check_stored_classes(extra.get("categories"), cfg.DATASETS.TEST)
    contents = test_contents(cfg) if comm.is_main_process() else {}
    if comm.is_main_process():
        logger.info("%s\n", evaluation_summary(cfg, model, test=contents, weights=weights))
    results = evaluate_with_progress(Trainer, cfg, model, contents=contents)
    if comm.is_main_process():
        logger.info("%s", results_table(results))
        verify_results(cfg, results)
    return results
