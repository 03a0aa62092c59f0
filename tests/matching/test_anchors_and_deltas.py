import math

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform

from resobj_d2.matching import AnchorGrid, DeltaCoder, LTRBCoder, octave_anchors
from resobj_d2.structures import Priors


def retinanet_anchors(strides=(8, 16, 32, 64, 128)):
    return octave_anchors(
        strides=strides, scale=4.0, scales_per_octave=3, aspect_ratios=[0.5, 1.0, 2.0]
    )


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_grid_equals_detectron2(offset):
    strides = [8, 16, 32, 64, 128]
    sizes = [(13, 20), (7, 10), (4, 5), (2, 3), (1, 2)]
    theirs = DefaultAnchorGenerator(
        sizes=[[4 * s * 2 ** (i / 3) for i in range(3)] for s in strides],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=strides,
        offset=offset,
    )([torch.zeros(1, 1, h, w) for h, w in sizes])
    priors = AnchorGrid(shapes=retinanet_anchors(), strides=strides, offset=offset)(sizes)
    assert priors.anchors_per_level == [len(x) for x in theirs]
    torch.testing.assert_close(
        priors.boxes, torch.cat([x.tensor for x in theirs]), rtol=1e-6, atol=1e-5
    )


def test_grid_by_hand():
    grid = AnchorGrid(shapes=[[(4.0, 2.0)]], strides=[8])
    boxes = grid([(1, 2)]).boxes
    assert boxes.tolist() == [[-2, -1, 2, 1], [6, -1, 10, 1]]


def test_a_checkpoint_does_not_bring_its_anchors():
    grid, other = (AnchorGrid(shapes=[[shape]], strides=[8]) for shape in [(4.0, 2.0), (8.0, 8.0)])
    other.load_state_dict(grid.state_dict())
    assert other([(1, 1)]).boxes.tolist() == [[-4, -4, 4, 4]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"shapes": [[(4, 4)]], "strides": [8, 16]}, "1 levels"),
        ({"shapes": [[(4, 0)]], "strides": [8]}, "positive"),
        ({"shapes": [[(4, 4)]], "strides": [8], "offset": 1.0}, "offset"),
    ],
)
def test_grid_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        AnchorGrid(**arguments)


def test_deltas_by_hand():
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    box = torch.tensor([[5.0, 0.0, 15.0, 40.0]])
    coder = DeltaCoder(weights=(10.0, 10.0, 5.0, 5.0))
    deltas = coder.encode(anchor, box)
    torch.testing.assert_close(deltas, torch.tensor([[5.0, 5.0, 0.0, 5 * math.log(2)]]))
    torch.testing.assert_close(coder.decode(anchor, deltas), box)


def test_deltas_equal_detectron2_and_broadcast():
    torch.manual_seed(0)
    corner, size = torch.rand(40, 2) * 50, torch.rand(40, 2) * 60 + 1
    anchors = torch.cat((corner, corner + size), 1)
    boxes = anchors + torch.rand(40, 4) * torch.tensor([-5.0, -5.0, 5.0, 5.0])
    deltas = torch.randn(3, 40, 4) * 2
    weights = (10.0, 10.0, 5.0, 5.0)
    theirs, ours = Box2BoxTransform(weights=weights), DeltaCoder(weights=weights)
    torch.testing.assert_close(ours.encode(anchors, boxes), theirs.get_deltas(anchors, boxes))
    decoded = ours.decode(anchors, deltas)
    for i in range(3):
        torch.testing.assert_close(decoded[i], theirs.apply_deltas(deltas[i], anchors))


def test_huge_deltas_stay_finite():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    boxes = DeltaCoder().decode(anchors, torch.tensor([[0.0, 0.0, 1e4, 1e4]]))
    assert (boxes[0, 2] - boxes[0, 0]).item() == pytest.approx(10 * 1000 / 16, rel=1e-5)


def test_decoding_is_float32_for_half_precision():
    anchors = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]])
    assert (
        DeltaCoder().decode(anchors, torch.zeros(1, 4, dtype=torch.bfloat16)).dtype == torch.float32
    )


@pytest.mark.parametrize("coder", [DeltaCoder(), LTRBCoder()])
def test_decoding_of_half_precision_is_computed_in_float32(coder):
    g = torch.Generator().manual_seed(0)
    anchors = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    deltas = torch.randn(20, 4, generator=g).bfloat16()
    for boxes in (anchors, anchors.bfloat16()):
        assert torch.equal(coder.decode(boxes, deltas), coder.decode(anchors, deltas.float()))


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match="WEIGHTS"):
        DeltaCoder(weights=(1.0, 1.0, 0.0, 1.0))


def test_properties_of_priors():
    grid = AnchorGrid(shapes=[[(4, 4), (8, 4)], [(16, 16)]], strides=[8, 16])
    priors = grid([(2, 3), (1, 2)])
    assert priors.num_anchors == [2, 1] and priors.input_size == (16, 24)
    assert priors.anchor_strides.flatten().tolist() == [8.0] * 12 + [16.0] * 2
    with pytest.raises(ValueError, match="1 counts of anchors, 2 map sizes and 1 strides"):
        Priors(
            boxes=torch.zeros(2, 4), anchors_per_level=[2], map_sizes=[(1, 1), (1, 1)], strides=[8]
        )
