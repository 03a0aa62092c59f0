"""Losses of a batch in parts, compared with those of the whole batch."""

import pytest
import torch

from resobj_d2.losses import NORMALIZER_REGISTRY
from resobj_d2.losses.gradient_harmonizing import GHMCLoss
from resobj_d2.losses.parts import BatchParts, over_parts, per_part


def test_by_default_a_batch_is_a_single_part():
    count = torch.tensor(3.0)
    assert over_parts(count) is count and per_part(count) is count


def test_counts_are_summed_over_parts_in_the_order_of_the_calls():
    parts = BatchParts(2)
    for first, second in ((1.0, 10.0), (2.0, 20.0)):
        with parts.counting():
            assert over_parts(torch.tensor(first)) == first
            over_parts(torch.tensor([second, 0.0]))
    for _ in range(2):
        with parts.training():
            assert over_parts(torch.tensor(7.0)) == 3.0
            assert over_parts(torch.tensor([7.0, 7.0])).tolist() == [30.0, 0.0]
            assert per_part(torch.tensor(3.0)) == 1.5
    assert per_part(torch.tensor(3.0)) == 3.0


@pytest.mark.parametrize("name", [name for name, _ in NORMALIZER_REGISTRY])
def test_normalisers_reproduce_the_loss_of_the_whole_batch(name):
    """Sums of 6 and 14 over parts with 1 and 4 foreground anchors, 3 and 5 trained, 1 image."""
    counts = [(1, 3, 1, 6.0), (4, 5, 1, 14.0)]
    whole = NORMALIZER_REGISTRY.get(name)()
    expected = 20.0 / whole(torch.tensor(5), torch.tensor(8), 2)
    normaliser, parts, loss = NORMALIZER_REGISTRY.get(name)(), BatchParts(2), 0.0
    state = {key: value.clone() for key, value in normaliser.state_dict().items()}
    for count in (True, False):
        for foreground, trained, images, total in counts:
            normaliser.load_state_dict(state)
            with parts.counting() if count else parts.training():
                divisor = normaliser(torch.tensor(foreground), torch.tensor(trained), images)
            loss += 0.0 if count else total / divisor / 2
    torch.testing.assert_close(loss, expected)
    for key, value in normaliser.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[key])


def test_harmonised_losses_use_the_whole_batch():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 50, 3, generator=g)
    labels = torch.randint(-1, 4, (6, 50), generator=g)
    mask = torch.rand(6, 50, generator=g) < 0.8
    whole = GHMCLoss()
    expected = whole(logits, labels, mask)
    chunks = [tuple(x[i : i + 2] for x in (logits, labels, mask)) for i in (0, 2, 4)]
    parts = BatchParts(3)
    for chunk in chunks:
        with parts.counting():
            GHMCLoss()(*chunk)
    loss = 0.0
    for chunk in chunks:
        part = GHMCLoss()
        with parts.training():
            loss += part(*chunk) / 3
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(part.counts, whole.counts)
