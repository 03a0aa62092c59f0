"""The data loaders of training and evaluation."""

from __future__ import annotations

import functools

from detectron2.data import build_detection_test_loader
from detectron2.utils import comm

from resobj_d2.compat import training_sampler
from resobj_d2.data.mapper import ImageErrorMapper, build_test_mapper, build_train_mapper
from resobj_d2.data.missing_pictures import check_pictures_exist
from resobj_d2.data.register import evaluation_records, training_records
from resobj_d2.data.train_loader import TrainLoader

from .interrupt import SteadyMapper
from .summary import count_contents

__all__ = ["build_test_loader", "build_train_loader"]


def build_train_loader(cfg) -> TrainLoader:
    """Batches of ``DATASETS.TRAIN`` for this process; ``contents`` tells how much there is.

    Raises:
        ValueError: as :func:`training_records`; or a batch cannot be divided among the processes.
        FileNotFoundError: pictures are missing. The main process alone asks for all of them.
    """
    records = training_records(cfg)
    if comm.is_main_process():
        check_pictures_exist(records, cfg.DATASETS.TRAIN)
    world_size = comm.get_world_size()
    images, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    if images % (world_size * parts):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {images} must be a multiple of the number of processes times "
            f"SOLVER.ACCUMULATION_STEPS, {world_size} x {parts}"
        )
    loader = TrainLoader(
        records,
        mapper=SteadyMapper(ImageErrorMapper(build_train_mapper(cfg))),
        make_sampler=functools.partial(training_sampler, cfg),
        batch_size=images // world_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        group_by_shape=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        rank=comm.get_rank(),
        world_size=world_size,
    )
    loader.contents = count_contents(records)  # for the summary; the records are packed away
    return loader


def build_test_loader(cfg, dataset_name: str):
    """Detectron2's, whose errors name the image."""
    mapper = SteadyMapper(ImageErrorMapper(build_test_mapper(cfg)))
    records = evaluation_records(cfg, dataset_name)
    return build_detection_test_loader(
        records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
