"""MODEL.CHANNELS_LAST: another layout in memory, the same detector."""

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage


def test_the_layout_changes_nothing_but_itself(tiny_cfg, make_batch):
    batch = make_batch([(64, 96, 2), (64, 96, 1)], num_classes=3)
    models = []
    for layout in (False, True):
        torch.manual_seed(0)
        models.append(build_model(tiny_cfg("MODEL.CHANNELS_LAST", layout)))
    plain, other = models
    maps = other.backbone(torch.rand(1, 3, 64, 96))
    for name, x in plain.backbone(torch.rand(1, 3, 64, 96)).items():
        if min(x.shape[1:]) > 1:
            assert x.is_contiguous() and not maps[name].is_contiguous()
            assert maps[name].is_contiguous(memory_format=torch.channels_last)
    gradients = []
    for model in models:
        with EventStorage():
            losses = model(batch)
        sum(losses.values()).backward()
        gradients.append([*losses.values(), *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    other.load_state_dict(plain.state_dict())  # a checkpoint has no layout
    weights = [p for p in other.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
