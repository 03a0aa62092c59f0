"""YOLOv3's priors and box parametrisation, against values computed by hand."""

import math

import pytest
import torch

from resobj_d2.matching import YOLOAnchors, YOLOCoder

SIZES = [[[10, 13], [16, 30]], [[40, 20]]]


def anchors_of(sizes):
    return YOLOAnchors(sizes=sizes, strides=[8, 16], offset=0.5)


def test_priors_are_centred_in_their_cells():
    priors = anchors_of(SIZES)([(2, 4), (1, 2)])
    assert priors.num_anchors == [2, 1]
    assert priors.anchors_per_level == [16, 2]
    assert priors.input_size == (16, 32)
    # Row 1, column 2 of the first level: the centre is (20, 12), the second shape 16 x 30.
    row = (1 * 4 + 2) * 2 + 1
    assert priors.boxes[row].tolist() == [20 - 8, 12 - 15, 20 + 8, 12 + 15]
    assert priors.boxes[16].tolist() == [8 - 20, 8 - 10, 8 + 20, 8 + 10]
    assert priors.anchor_strides[[0, 15, 16, 17], 0].tolist() == [8, 8, 16, 16]


@pytest.mark.parametrize(
    "sizes",
    [
        [], [[[10, 13]]], [[[10, 13]], []], [[10, 13], [16, 30]], [[[1, 2, 3]], [[1, 2]]],
        [[["10", 13]], [[1, 2]]], [[[10, -13]], [[1, 2]]], [[[math.inf, 13]], [[1, 2]]],
    ],
)  # fmt: skip
def test_sizes_must_be_pairs_per_level(sizes):
    with pytest.raises(ValueError, match="PRIORS.SIZES.*2 levels"):
        anchors_of(sizes)


def test_decode_by_hand():
    # A prior of 20 x 30 centred at (24, 40) in a cell of 16 pixels, i.e. [16, 32] x [32, 48].
    anchor = torch.tensor([[14.0, 25.0, 34.0, 55.0]])
    deltas = torch.tensor([[math.log(3), -math.log(3), math.log(2), math.log(0.5)]])
    box = YOLOCoder().decode(anchor, deltas, torch.tensor([[16.0]]))
    # The sigmoids are 3/4 and 1/4: the centre is (16 + 12, 32 + 4); the size is 40 x 15.
    torch.testing.assert_close(box, torch.tensor([[8.0, 28.5, 48.0, 43.5]]))


def test_encode_is_the_inverse():
    g = torch.Generator().manual_seed(0)
    priors = anchors_of(SIZES)([(2, 4), (1, 2)])
    middle = (priors.boxes[:, :2] + priors.boxes[:, 2:]) / 2
    centre = middle + (torch.rand(18, 2, generator=g) - 0.5) * 0.99 * priors.anchor_strides
    half = 1 + 30 * torch.rand(18, 2, generator=g)
    boxes = torch.cat((centre - half, centre + half), dim=1)
    coder = YOLOCoder()
    deltas = coder.encode(priors.boxes, boxes, priors.anchor_strides)
    torch.testing.assert_close(
        coder.decode(priors.boxes, deltas, priors.anchor_strides), boxes, rtol=0, atol=1e-4
    )


def test_encoding_a_prior_itself_or_a_centre_on_the_border_is_finite():
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    side = torch.tensor([[16.0]])
    coder = YOLOCoder()
    assert coder.encode(anchor, anchor, side).tolist() == [[0, 0, 0, 0]]
    outside = torch.tensor([[100.0, 8.0, 116.0, 24.0]])  # its centre (108, 16) lies beyond
    deltas = coder.encode(anchor, outside, side)
    assert torch.isfinite(deltas).all()
    box = coder.decode(anchor, deltas, side)
    assert torch.allclose(box, torch.tensor([[8.0, 8.0, 24.0, 24.0]]), atol=1e-3)


def test_decoding_bfloat16_is_float32_and_cannot_overflow():
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    deltas = torch.tensor([[0.0, 0.0, 500.0, 0.0]], dtype=torch.bfloat16)
    box = YOLOCoder().decode(anchor, deltas, torch.tensor([[16.0]]))
    assert box.dtype == torch.float32
    assert (box[0, 2] - box[0, 0]).item() == pytest.approx(1000.0)


def test_batch_of_deltas_broadcasts_over_shared_anchors():
    priors = anchors_of(SIZES)([(2, 4), (1, 2)])
    deltas = torch.randn(3, 18, 4, generator=torch.Generator().manual_seed(1))
    coder = YOLOCoder()
    boxes = coder.decode(priors.boxes, deltas, priors.anchor_strides)
    assert boxes.shape == (3, 18, 4)
    again = coder.encode(priors.boxes, boxes, priors.anchor_strides)
    torch.testing.assert_close(again, deltas, rtol=1e-3, atol=1e-3)
