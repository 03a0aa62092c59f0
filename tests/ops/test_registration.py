"""Every registered operator has a reference, a fake, autograd and autocast, and passes opcheck.

An operator without samples here fails the first test. The behaviour of its wrapper is tested in
test_every_operator.py.
"""

import inspect

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops import reference
from resobj_d2.ops._library import NAMESPACE
from tests.ops.operator_cases import ON_THE_CPU_ALONE, WITHOUT_KERNELS

HALF = torch.bfloat16


def _residual_tensors(requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 40, generator=generator)
    residuals = torch.randn(2, 2, 40, generator=generator)
    labels = torch.randint(-1, 2, (2, 40), generator=generator, dtype=torch.int8)
    if requires_grad:
        logits.requires_grad_(), residuals.requires_grad_()
    return logits, residuals, labels


def box_samples():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [4, 4, 4, 4]])
    yield boxes, boxes[:2]
    yield boxes[:0], boxes, "giou"
    yield boxes.double().requires_grad_(), boxes.double(), "iof"


def box_out_samples():
    for boxes in (torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [4, 4, 4, 4]]), torch.rand(0, 4)):
        yield boxes, boxes[:2], "giou", boxes.new_zeros(len(boxes), len(boxes[:2]))


def _pair_tensors(requires_grad=False):
    pred = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [4, 4, 4, 4], [9, 9, 5, 7]])
    target = torch.tensor([[1.0, 1, 3, 4], [1, 1, 3, 3], [0, 0, 1, 1], [4, 4, 8, 8]])
    return (pred.requires_grad_(), target.requires_grad_()) if requires_grad else (pred, target)


def aligned_samples():
    yield _pair_tensors(requires_grad=True)
    pred, target = _pair_tensors()
    yield pred.double().requires_grad_(), target.double(), "giou"
    yield pred[:0], target[:0], "iou"


def aligned_backward_samples():
    for kind in ("iou", "giou"):
        yield torch.tensor([1.0, -2, 3, 0]), *_pair_tensors(), kind


def giou_samples():
    pred, target = _pair_tensors()
    yield pred.clone().requires_grad_(), target
    yield pred.double().requires_grad_(), target.double(), target[:, 0] > 0
    yield pred[:0], target[:0], None


def giou_backward_samples():
    pred, target = _pair_tensors()
    yield torch.tensor(2.0), pred, target, None
    yield torch.tensor(2.0), pred, target, target[:, 0] > 0


def balanced_samples():
    pred, target = _pair_tensors()
    yield pred.clone().requires_grad_(), target
    yield pred.double().requires_grad_(), target.double(), 0.3, 1.0, 0.11
    yield pred[:0], target[:0]


def balanced_backward_samples():
    yield torch.tensor(2.0), *_pair_tensors(), 0.5, 1.5, 1.0


def residual_samples():
    yield _residual_tensors(requires_grad=True)
    yield *_residual_tensors(requires_grad=True), "none", "level", "keep", [30, 0, 10]
    logits, residuals, labels = _residual_tensors()
    yield logits, residuals[:0], labels, "objectness", "batch", "update"
    yield logits[:, :0], residuals[:, :, :0], labels[:, :0]


def residual_backward_samples():
    logits, residuals, labels = _residual_tensors()
    for detach, scope, unselected in (("all", "image", "update"), ("none", "none", "keep")):
        losses, _, thresholds, *_ = torch.ops.resobj_d2.residual_objectness_bce(
            logits, residuals, labels, detach, scope, unselected
        )
        gradient = torch.ones_like(losses)
        yield gradient, logits, residuals, labels, thresholds, detach, scope, unselected, []


def residual_with_gradient_samples():
    for gradient, *tensors, _, detach, scope, unselected, levels in residual_backward_samples():
        yield gradient, *tensors, detach, scope, unselected, levels


def match_samples():
    anchors = torch.tensor([[0.0, 0, 4, 4], [1, 1, 3, 3], [5, 5, 9, 9]])
    rule = [0.4, 0.5], [0, -1, 1]
    yield anchors, anchors[:2], [0, 2], *rule
    yield anchors.double().requires_grad_(), anchors[:0].double(), [0], *rule, False, True
    refined = torch.stack((anchors, anchors + 1))
    yield refined, anchors, [1, 2], *rule, True, False, anchors[:1], [1, 0], 0.3


def reassign_samples():
    anchors = torch.tensor([[0.0, 0, 4, 4], [1, 1, 3, 3], [5, 5, 9, 9]])
    deltas = torch.tensor([[0.1, 0, 0, 0.2], [0, 0, 0, 0], [0, 0.1, -0.1, 0]])
    rule = [1.0, 1.0, 1.0, 1.0], 4.0, [0.4, 0.5], [0, -1, 1]
    yield anchors, torch.stack((deltas, -deltas)), anchors[:2], [0, 2], *rule
    double = deltas[None].double().requires_grad_()
    yield anchors.double(), double, anchors[:0].double(), [0], *rule, True, True
    refined = torch.stack((anchors, anchors + 1))
    both = torch.stack((deltas, deltas))
    yield refined, both, anchors, [1, 2], *rule, True, False, anchors[:1], [1, 0], 0.3
    yield anchors[:0], deltas[None, :0], anchors, [3], *rule


def with_sizes(sample, *positions):
    """A complete sample, with tensors in place of these lists of sizes."""
    return tuple(
        torch.tensor(x, dtype=torch.int64) if i in positions else x for i, x in enumerate(sample)
    )


def match_by_tensors_samples():
    _, _, complete = match_samples()
    yield with_sizes(complete, 2, 8)
    yield with_sizes((*complete[:7], None, [], 0.5), 2, 8)


def reassign_by_tensors_samples():
    _, _, complete, _ = reassign_samples()
    yield with_sizes(complete, 3, 11)


def dense_by_tensors_samples():
    _, clipped, empty = dense_samples()
    yield *clipped[:-1], torch.tensor([[5, 5], [4, 3]])
    yield *empty[:-1], torch.zeros(0, 2, dtype=torch.int64)


def _focal_tensors():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 5, generator=generator)
    labels = torch.randint(-1, 6, (3, 7), generator=generator)
    return logits, labels, torch.rand(3, 7, generator=generator) < 0.7


def focal_samples():
    logits, labels, mask = _focal_tensors()
    yield logits.requires_grad_(), labels
    yield logits.detach().double().requires_grad_(), labels, mask, -1.0, 0.0
    yield logits.detach()[:0], labels[:0], None, 0.25, 1.5


def focal_backward_samples():
    logits, labels, mask = _focal_tensors()
    yield torch.tensor(2.0), logits, labels, mask, 0.25, 2.0
    yield torch.tensor(2.0), logits, labels, None, -1.0, 1.5


def dense_samples():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3), (1, 2)]
    cls, box, objectness = (
        [torch.randn(2, 2 * c, h, w, generator=generator) for h, w in shapes] for c in (3, 4, 1)
    )
    anchors = [torch.rand(2 * h * w, 4, generator=generator).cumsum(dim=1) for h, w in shapes]
    limits = 0.5, 4, 0.5, 6, [1.0, 1.0, 2.0, 2.0], 4.0
    yield cls, box, anchors, [], 3, [1.0], [0.0], *limits, []
    cls[0].requires_grad_()
    yield cls, [], anchors, objectness, 3, [0.6, 0.4], [0.1, 0.2], *limits, [5, 5, 4, 3]
    yield [x[:0] for x in cls], [], anchors, [], 3, [1.0], [0.0], *limits, []


def _candidate_tensors(dtype=torch.float32, **options):
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [2, 2, 6, 6], [0, 0, 4, 4]], dtype=dtype)
    scores = torch.tensor([0.5, 0.9, 0.7, 0.1], dtype=dtype, **options)
    return boxes, scores, torch.tensor([1, 1, 1, -7])


def nms_samples():
    yield *_candidate_tensors(), 0.5
    yield *_candidate_tensors(torch.float64, requires_grad=True), 0.1, 2
    yield *(tensor[:0] for tensor in _candidate_tensors()), 0.5, 3


def soft_samples():
    yield *_candidate_tensors(), "linear", 0.3, 0.5, 0.001
    yield *_candidate_tensors(torch.float64, requires_grad=True), "gaussian", 0.3, 0.5, 0.2, 2
    yield *(tensor[:0] for tensor in _candidate_tensors()), "linear", 0.3, 0.5, 0.001, 3


def matrix_samples():
    yield *_candidate_tensors(), "linear", 0.5
    yield *_candidate_tensors(torch.float64, requires_grad=True), "gaussian", 0.5
    yield *(tensor[:0] for tensor in _candidate_tensors()), "gaussian", 0.5


def fusion_samples():
    models = torch.tensor([0, 1, 1, 0])
    yield *_candidate_tensors(), models, [1.0, 2.0], 0.5, "mean"
    yield *_candidate_tensors(torch.float64, requires_grad=True), models, [1.0, 2.0], 0.1, "max"
    yield *(tensor[:0] for tensor in _candidate_tensors()), models[:0], [1.0], 0.5, "sum"


SAMPLES = {
    "_dense_detections_by_tensors": dense_by_tensors_samples,
    "_match_anchors_by_tensors": match_by_tensors_samples,
    "_reassign_anchors_by_tensors": reassign_by_tensors_samples,
    "weighted_box_fusion": fusion_samples,
    "dense_detections": dense_samples,
    "batched_nms": nms_samples,
    "batched_nms_padded": nms_samples,
    "soft_nms": soft_samples,
    "soft_nms_padded": soft_samples,
    "matrix_nms": matrix_samples,
    "match_anchors": match_samples,
    "reassign_anchors": reassign_samples,
    "pairwise_box_iou": box_samples,
    "_pairwise_box_iou_out": box_out_samples,
    "box_iou_aligned": aligned_samples,
    "_box_iou_aligned_backward": aligned_backward_samples,
    "giou_loss": giou_samples,
    "_giou_loss_backward": giou_backward_samples,
    "_giou_loss_with_gradient": giou_backward_samples,
    "balanced_l1_loss": balanced_samples,
    "_balanced_l1_loss_backward": balanced_backward_samples,
    "_balanced_l1_loss_with_gradient": balanced_backward_samples,
    "sigmoid_focal_loss": focal_samples,
    "_sigmoid_focal_loss_backward": focal_backward_samples,
    "_sigmoid_focal_loss_with_gradient": focal_backward_samples,
    "residual_objectness_bce": residual_samples,
    "_residual_objectness_bce_backward": residual_backward_samples,
    "_residual_objectness_bce_with_gradient": residual_with_gradient_samples,
}


def registered():
    prefix = f"{NAMESPACE}::"
    return sorted(
        name.removeprefix(prefix)
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(prefix)
    )


def test_every_operator_has_samples_for_opcheck():
    assert registered() == sorted(SAMPLES)


def tensors_in(arguments):
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from tensors_in(argument)


@pytest.mark.parametrize("name", [name for name in SAMPLES if not name.startswith("_")])
def test_samples_include_empty_tensors_and_gradients(name):
    samples = [list(tensors_in(arguments)) for arguments in SAMPLES[name]()]
    assert any(tensor.numel() == 0 for tensors in samples for tensor in tensors)
    assert any(tensor.requires_grad for tensors in samples for tensor in tensors)


def test_every_public_operator_has_a_wrapper():
    public = {name for name in registered() if not name.startswith("_")}
    assert public <= set(ops.__all__)


def schema_arguments(name):
    return [a.name for a in getattr(torch.ops.resobj_d2, name).default._schema.arguments]


@pytest.mark.parametrize("name", [name for name in SAMPLES if not name.startswith("_")])
def test_wrapper_and_reference_take_the_arguments_in_the_order_of_the_schema(name):
    expected = schema_arguments(name)
    assert list(inspect.signature(getattr(reference, name)).parameters) == expected
    parameters = inspect.signature(getattr(ops, name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == expected[: len(positional)]
    assert {p.name for p in parameters} - {"out", "weight", "reduction"} == set(expected)


@pytest.mark.parametrize("name", registered())
@pytest.mark.parametrize(
    "key",
    ["CompositeExplicitAutograd", "Meta", "Autograd", "AutocastCPU", "AutocastCUDA"],
)
def test_every_operator_is_registered_for(name, key):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)


@pytest.mark.parametrize("name", sorted(set(registered()) - WITHOUT_KERNELS))
def test_native_libraries_have_a_kernel_for_every_operator(native_backend, name):
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    expected = native_backend == "cpu" or name not in ON_THE_CPU_ALONE
    assert has(f"{NAMESPACE}::{name}", native_backend.upper()) == expected


@pytest.mark.parametrize(
    "name, arguments",
    [(name, arguments) for name, samples in SAMPLES.items() for arguments in samples()],
)
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(torch.ops.resobj_d2, name).default, arguments)


@pytest.mark.parametrize("name", registered())
def test_autocast_computes_in_float32(name):
    operator = getattr(torch.ops.resobj_d2, name)

    def convert(value, dtype):
        if isinstance(value, list):
            return [convert(item, dtype) for item in value]
        is_single = isinstance(value, torch.Tensor) and value.dtype in (torch.float32, HALF)
        return value.detach().to(dtype) if is_single else value

    arguments = convert(list(next(SAMPLES[name]())), HALF)
    expected = operator(*convert(arguments, torch.float32))
    with torch.autocast("cpu", HALF):
        result = operator(*arguments)
    for a, b in zip(tensors_in([result]), tensors_in([expected]), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_wrappers_compile_without_a_graph_break():
    logits, residuals, labels = _residual_tensors(requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]])

    def loss(logits, residuals, boxes):
        output = ops.residual_objectness_bce(logits, residuals, labels, unselected="keep")
        return output.losses.sum() * ops.pairwise_box_iou(boxes, boxes, "giou").sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager, result = loss(logits, residuals, boxes), compiled(logits, residuals, boxes)
    assert torch.equal(eager, result)
    for a, b in zip(
        torch.autograd.grad(eager, (logits, residuals)),
        torch.autograd.grad(result, (logits, residuals)),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_losses_compile_without_a_graph_break():
    logits, labels, mask = _focal_tensors()
    pred, target = _pair_tensors()

    def loss(logits, pred):
        focal = ops.sigmoid_focal_loss(logits, labels, mask=mask)
        boxes = ops.giou_loss(pred, target, target[:, 0] > 0) + ops.balanced_l1_loss(pred, target)
        return focal + boxes + ops.box_iou_aligned(pred, target, "giou").sum()

    inputs = logits.requires_grad_(), pred.clone().requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager, result = loss(*inputs), compiled(*inputs)
    assert torch.equal(eager, result)
    expected = torch.autograd.grad(eager, inputs)
    for a, b in zip(expected, torch.autograd.grad(result, inputs), strict=True):
        # The gradients of two losses may be added in a different order.
        torch.testing.assert_close(a, b)
