"""From a configuration, or its name, to a model."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.config import load_config
from resobj_d2.config.zoo import override_list
from resobj_d2.modeling.feature_maps import explained_feature_maps
from resobj_d2.modeling.heads.single_cell_norm import take_single_cells

__all__ = ["build_detector"]


def build_detector(
    config: CfgNode | str | os.PathLike, *, weights: str | None = None, **overrides
) -> nn.Module:
    """A detector on ``MODEL.DEVICE``, in training mode as Detectron2's ``build_model`` returns it.

    Args:
        config: a config, or a path or name as in :func:`resobj_d2.config.zoo.find_config`. Under a
            name the datasets play no part and need not be there.
        weights: a checkpoint of the whole model; by default the parameters are random, whatever
            ``MODEL.WEIGHTS`` is.
        overrides: with a name, as in :func:`resobj_d2.get_config`.

    Raises:
        TypeError: overrides of a config, which can be changed itself.
        FileNotFoundError, ValueError: as :func:`resobj_d2.load_config`.
        CheckpointError: the weights are another model's.
    """
    if isinstance(config, CfgNode):
        if overrides:
            raise TypeError("overrides go with a path or name; change the config itself instead")
    else:
        options = [*override_list(overrides), "DATASETS.REGISTER", [], "DATASETS.TEST", ()]
        config = load_config(os.fspath(config), options, training=False)
    with explained_feature_maps(config):
        model = take_single_cells(build_model(config))
    if weights is not None:
        ResObjCheckpointer(model, strict=True, cfg=config).load(weights)
    return model
