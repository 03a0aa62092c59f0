"""VGG16 for two-stage detectors, with torchvision's network and weights as the reference."""

import pytest
import torch
from detectron2.modeling import build_model
from torchvision.models.vgg import cfgs, make_layers

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.checkpoint.vgg16 import rename_vgg16_for_rcnn
from resobj_d2.config import get_config
from resobj_d2.modeling import VGG16


@pytest.fixture(scope="module")
def reference():
    """torchvision's convolutions."""
    torch.manual_seed(0)
    network = make_layers(cfgs["D"])
    for layer in network:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    return network


def test_features_are_torchvisions_without_the_last_pool(reference):
    model = VGG16()
    model.features.load_state_dict(reference.state_dict())
    image = torch.randn(1, 3, 48, 32)
    (maps,) = model(image).values()
    assert maps.shape == (1, 512, 3, 2)
    torch.testing.assert_close(maps, reference[:-1](image))


@pytest.mark.parametrize("freeze_at, frozen", [(0, []), (2, [0, 2, 5, 7]), (5, range(30))])
def test_blocks_are_frozen(freeze_at, frozen):
    model = VGG16(freeze_at=freeze_at)
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    convolutions = [i for i in frozen if isinstance(model.features[i], torch.nn.Conv2d)]
    assert names == {f"features.{i}.{kind}" for i in convolutions for kind in ("weight", "bias")}
    with pytest.raises(ValueError, match="FREEZE_AT must be 0..5"):
        VGG16(freeze_at=6)


def test_torchvisions_checkpoint_fills_the_backbone(reference, tmp_path):
    weights = {f"features.{name}": value for name, value in reference.state_dict().items()}
    torch.save(weights, tmp_path / "vgg16.pth")
    cfg = get_config("faster_rcnn_vgg16_voc07", training=False, MODEL__DEVICE="cpu")
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    model = build_model(cfg)
    ResObjCheckpointer(model).load(str(tmp_path / "vgg16.pth"))
    for i in (0, 28):
        assert torch.equal(model.backbone.features[i].weight, reference[i].weight)
    # fc6 and fc7 by name: both sides flatten channels, rows, columns.
    shapes = {"classifier.0.weight": (4096, 25088), "classifier.3.weight": (4096, 4096)}
    biases = {name.replace("weight", "bias"): (4096,) for name in shapes}
    file = {
        name: torch.empty(shape, device="meta")
        for name, shape in {**shapes, **biases, "classifier.6.bias": (1000,)}.items()
    }
    renamed = rename_vgg16_for_rcnn(file)
    head = "roi_heads.box_head"
    assert list(renamed) == [
        f"{head}.fc1.weight", f"{head}.fc2.weight", f"{head}.fc1.bias", f"{head}.fc2.bias"
    ]  # fmt: skip
    assert set(renamed) < set(model.state_dict())
    with pytest.raises(ValueError, match="in VGG16 it has"):
        rename_vgg16_for_rcnn({"classifier.0.weight": torch.empty(4096, 512)})
