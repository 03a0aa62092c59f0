"""Small detectors of every family, and pictures for them."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from tests.modeling.conftest import method_cfg  # noqa: F401 (a fixture)


@pytest.fixture(scope="session")
def spread_out():
    """A function: config to a model whose scores differ, so that their order is no accident."""

    def build(cfg):
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        for parameter in model.parameters():
            if parameter.dim() == 4 and parameter.std() < 0.02:  # the layers of the head
                parameter.data.mul_(20)
        return model

    return build


@pytest.fixture(scope="session")
def pictures():
    """A function: [(height, width)] to Detectron2's input, of originals of another size."""

    def make(sizes, seed=0):
        g = torch.Generator().manual_seed(seed)
        return [
            {
                "image": (torch.rand(3, h, w, generator=g) * 255).to(torch.uint8),
                "height": int(h * 1.7),
                "width": int(w * 0.8),
            }
            for h, w in sizes
        ]

    return make


@pytest.fixture(scope="session")
def picture_files(tmp_path_factory):
    """Three files: one of them larger than a model of these tests takes, one a single grey."""
    folder = tmp_path_factory.mktemp("pictures")
    g = np.random.default_rng(0)
    paths = []
    for name, (h, w), high in (
        ("a", (70, 90), 256),
        ("large", (300, 200), 256),
        ("grey", (64, 64), 1),
    ):
        path = folder / f"{name}.png"
        Image.fromarray(g.integers(0, high, (h, w, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return paths
