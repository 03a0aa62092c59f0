"""Checkpoints: what Detectron2's checkpointer reads and writes, and files of other projects."""

from .checkpointer import CheckpointError, ResObjCheckpointer

__all__ = ["CheckpointError", "ResObjCheckpointer"]
