"""dense_detections against an independent eager version and Detectron2's RetinaNet."""

import math
import types
from pathlib import Path

import pytest
import torch
from torchvision.ops import batched_nms

from resobj_d2 import ops

NAN = math.nan
OPTIONS = {"score_thresh": 0.1, "topk": 100, "nms_thresh": 0.5, "max_detections": 5}


def grid(height, width, num_anchors, stride, generator):
    """Anchors of a level, cell by cell."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = (torch.stack((x, y), dim=-1).double() * stride).reshape(-1, 1, 2)
    size = torch.rand(num_anchors, 2, generator=generator, dtype=torch.float64)
    size = (1 + 3 * size) * stride
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1).reshape(-1, 4)


LEVELS = [(9, 13, 8), (5, 7, 16), (3, 1, 32)]


def random_head(seed, *, images=2, per_cell=3, classes=4, spread=2.0, dtype=torch.float32):
    """Class, delta and two factor maps plus anchors, on three levels."""
    g = torch.Generator().manual_seed(seed)

    def maps(channels, scale, shift=0.0):
        sizes = [(images, per_cell * channels, h, w) for h, w, _ in LEVELS]
        values = [torch.randn(size, generator=g, dtype=torch.float64) for size in sizes]
        return [(x * scale + shift).to(dtype) for x in values]

    anchors = [grid(h, w, per_cell, s, g).to(dtype) for h, w, s in LEVELS]
    return {
        "cls_logits": maps(classes, spread, -2.0),
        "deltas": maps(4, 0.3),
        "anchors": anchors,
        "factor_logits": [maps(1, spread), maps(1, spread)],
        "num_classes": classes,
    }


def on_device(head, device):
    def move(value):
        if isinstance(value, torch.Tensor):
            return value.to(device)
        return [move(x) for x in value] if isinstance(value, list) else value

    return {name: move(value) for name, value in head.items()}


def eager(head, *, exponents, floors, score_thresh, topk, nms_thresh, max_detections):
    """Per image (boxes, scores, classes, rows), by the usual code on flattened predictions."""

    def flat(maps, channels):
        x = maps.unflatten(0, (-1, channels)).permute(2, 3, 0, 1)
        return x.reshape(-1, channels)

    results = []
    for image in range(head["cls_logits"][0].shape[0]):
        parts = []
        start = 0
        for level, anchors in enumerate(head["anchors"]):
            cls = flat(head["cls_logits"][level][image], head["num_classes"]).sigmoid()
            factors = [flat(maps[level][image], 1).sigmoid() for maps in head["factor_logits"]]
            score = cls.pow(exponents[0]) * (cls >= floors[0])
            for p, exponent, floor in zip(factors, exponents[1:], floors[1:], strict=True):
                score = score * p.pow(exponent) * (p >= floor)
            values, index = score.flatten().sort(descending=True)
            index = index[: int((values > score_thresh).sum())][:topk]
            row = index // head["num_classes"]
            size = anchors[row, 2:] - anchors[row, :2]
            d = flat(head["deltas"][level][image], 4)[row]
            centre = anchors[row, :2] + size / 2 + d[:, :2] * size
            half = size * d[:, 2:].exp() / 2
            boxes = torch.cat((centre - half, centre + half), dim=1)
            classes = index % head["num_classes"]
            parts.append((boxes, score.flatten()[index], classes, row + start))
            start += len(anchors)
        boxes, scores, classes, rows = (torch.cat(x) for x in zip(*parts, strict=True))
        keep = batched_nms(boxes, scores, classes, nms_thresh)[:max_detections]
        results.append((boxes[keep], scores[keep], classes[keep], rows[keep]))
    return results


def assert_same(result, expected):
    for name, a, b in zip(result._fields, result, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        if a.is_floating_point():
            torch.testing.assert_close(a.cpu(), b.cpu(), msg=name)
        else:
            assert torch.equal(a.cpu(), b.cpu()), name


RULES = [
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], 0.05),
    ([0.6, 1.0, 0.4], [0.0, 0.3, 0.0], 0.2),
    ([1.0, 0.0, 2.0], [0.1, 0.5, 0.0], 0.01),
    ([0.05, 1.0, 1.0], [0.0, 0.0, 0.1], 0.1),
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], 0.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponents, floors, score_thresh", RULES)
@pytest.mark.parametrize("topk", [7, 1000])
def test_equals_eager_code(impl, exponents, floors, score_thresh, topk, dtype):
    head = random_head(seed=3, dtype=dtype)
    options = {
        "exponents": exponents, "floors": floors, "score_thresh": score_thresh, "topk": topk,
        "nms_thresh": 0.4, "max_detections": 30,
    }  # fmt: skip
    detections = impl.dense_detections(**on_device(head, impl.device), **options)
    for image, (boxes, scores, classes, rows) in enumerate(eager(head, **options)):
        n = detections.counts[image].item()
        assert n == len(rows) > 10
        assert torch.equal(detections.rows[image, :n].cpu(), rows)
        assert torch.equal(detections.classes[image, :n].cpu(), classes)
        torch.testing.assert_close(detections.scores[image, :n].cpu(), scores)
        torch.testing.assert_close(detections.boxes[image, :n].cpu(), boxes)
        assert (detections.rows[image, n:] == -1).all() and (detections.boxes[image, n:] == 0).all()


def flattened(maps, channels):
    """The same maps as views of predictions flattened to (N, R, channels), as many heads have."""
    flat = torch.cat(
        [x.unflatten(1, (-1, channels)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in maps], dim=1
    )
    views, start = [], 0
    for x in maps:
        n, c, h, w = x.shape
        rows = c // channels * h * w
        part = flat[:, start : start + rows]
        views.append(part.unflatten(1, (h, w, -1)).flatten(3).permute(0, 3, 1, 2))
        start += rows
    return views


def test_memory_layout_does_not_matter(impl):
    head = on_device(random_head(seed=4), impl.device)
    options = OPTIONS | {"max_detections": 40, "exponents": [0.5, 0.8, 0.3]}
    expected = impl.dense_detections(**head, **options)
    assert (expected.counts > 20).all()
    names = {"cls_logits": head["num_classes"], "deltas": 4}
    layouts = {
        "channels-last": lambda x, c: [y.to(memory_format=torch.channels_last) for y in x],
        "flattened": flattened,
        "every second": lambda x, c: [y.repeat_interleave(2, dim=3)[..., ::2] for y in x],
        "transposed": lambda x, c: [y.transpose(2, 3).contiguous().transpose(2, 3) for y in x],
    }
    for layout in layouts.values():
        changed = {name: layout(head[name], c) for name, c in names.items()}
        changed["factor_logits"] = [layout(maps, 1) for maps in head["factor_logits"]]
        assert_same(impl.dense_detections(**head | changed, **options), expected)


def test_anchors_per_image_and_decoded_boxes(impl):
    head = on_device(random_head(seed=5), impl.device)
    options = OPTIONS | {"max_detections": 30}
    shared = impl.dense_detections(**head, **options)
    rows = [len(x) for x in head["anchors"]]
    refined = torch.cat(head["anchors"]).expand(2, -1, -1) + torch.tensor([0.0, 100.0]).view(
        2, 1, 1
    ).to(impl.device)
    own = impl.dense_detections(**head | {"anchors": refined.split(rows, dim=1)}, **options)
    torch.testing.assert_close(own.boxes[0], shared.boxes[0])
    n = shared.counts[1]
    torch.testing.assert_close(own.boxes[1, :n], shared.boxes[1, :n] + 100)
    boxes = impl.dense_detections(**head | {"deltas": None}, **options)
    n = boxes.counts[0]
    assert torch.equal(boxes.boxes[0, :n], torch.cat(head["anchors"])[boxes.rows[0, :n]])


def test_empty(impl):
    head = on_device(random_head(seed=6), impl.device)
    none = impl.dense_detections(**head, **OPTIONS | {"score_thresh": 1.0})
    assert none.counts.tolist() == [0, 0] and (none.rows == -1).all()
    assert (none.boxes == 0).all() and (none.scores == 0).all() and (none.factors == 0).all()

    def cut(value):
        if isinstance(value, torch.Tensor):
            return value[:0] if value.dim() == 4 else value
        return [cut(x) for x in value] if isinstance(value, list) else value

    no_images = impl.dense_detections(**{k: cut(v) for k, v in head.items()}, **OPTIONS)
    assert no_images.boxes.shape == (0, 5, 4) and no_images.counts.shape == (0,)
    extra = {
        "cls_logits": [*head["cls_logits"], head["cls_logits"][0][:, :, :0]],
        "deltas": [*head["deltas"], head["deltas"][0][:, :, :0]],
        "anchors": [*head["anchors"], head["anchors"][0][:0]],
        "factor_logits": [[*maps, maps[0][:, :, :0]] for maps in head["factor_logits"]],
    }
    expected = impl.dense_detections(**head, **OPTIONS)
    assert_same(impl.dense_detections(**head | extra, **OPTIONS), expected)


def test_more_candidates_than_topk(impl):
    """Everything passes; later candidates must displace earlier ones, ties by row."""
    g = torch.Generator().manual_seed(7)
    cls = (torch.rand(1, 6, 90, 100, generator=g) * 200).round() / 100  # many equal scores
    boxes = (torch.tensor([0.0, 0, 1, 1]) + 2 * torch.arange(18000)[:, None]).to(impl.device)
    detections = impl.dense_detections(
        [cls.to(impl.device)], None, [boxes], num_classes=3, score_thresh=0.0, topk=500,
        nms_thresh=0.5, max_detections=500,
    )  # fmt: skip
    flat = cls[0].unflatten(0, (2, 3)).permute(2, 3, 0, 1).flatten()
    order = flat.sort(descending=True, stable=True).indices[:500]
    assert detections.rows[0].tolist() == (order // 3).tolist()
    assert detections.classes[0].tolist() == (order % 3).tolist()


def test_equals_detectron2s_retinanet():
    pytest.importorskip("detectron2")
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.meta_arch import retinanet
    from detectron2.structures import Boxes

    head = random_head(seed=8, classes=5)
    options = {"score_thresh": 0.05, "topk": 200, "nms_thresh": 0.5, "max_detections": 100}
    settings = {
        "num_classes": 5, "test_score_thresh": 0.05, "test_topk_candidates": 200,
        "test_nms_thresh": 0.5, "max_detections_per_image": 100,
        "box2box_transform": Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
    }  # fmt: skip
    theirs = types.SimpleNamespace(**settings)
    for name in dir(retinanet.RetinaNet):
        if name.startswith(("inference_single", "_decode")):
            setattr(theirs, name, types.MethodType(getattr(retinanet.RetinaNet, name), theirs))
    try:
        from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
    except ImportError:  # Detectron2 0.5
        from detectron2.modeling.meta_arch.retinanet import permute_to_N_HWA_K
    logits = [permute_to_N_HWA_K(x, 5) for x in head["cls_logits"]]
    deltas = [permute_to_N_HWA_K(x, 4) for x in head["deltas"]]
    if hasattr(retinanet.RetinaNet, "forward_inference"):  # after 0.5 it takes probabilities
        logits = [x.sigmoid() for x in logits]
    anchors = [Boxes(x) for x in head["anchors"]]
    head["factor_logits"] = []
    detections = ops.dense_detections(**head, **options)
    for i in range(2):
        expected = theirs.inference_single_image(
            anchors, [x[i].clone() for x in logits], [x[i] for x in deltas], (100, 100)
        )
        n = detections.counts[i].item()
        assert n == len(expected) > 50
        torch.testing.assert_close(detections.scores[i, :n], expected.scores)
        torch.testing.assert_close(detections.boxes[i, :n], expected.pred_boxes.tensor)
        assert torch.equal(detections.classes[i, :n], expected.pred_classes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    half = random_head(seed=9, dtype=dtype)
    full = {k: v for k, v in half.items() if k == "num_classes"}
    full |= {k: [x.float() for x in half[k]] for k in ("cls_logits", "deltas", "anchors")}
    full["factor_logits"] = [[x.float() for x in maps] for maps in half["factor_logits"]]
    expected = ops.dense_detections(**full, **OPTIONS)
    assert_same(ops.dense_detections(**half, **OPTIONS), expected)
    with torch.autocast("cpu", dtype):
        result = torch.ops.resobj_d2.dense_detections(
            half["cls_logits"], half["deltas"], half["anchors"], sum(half["factor_logits"], []), 4,
            [1.0] * 3, [0.0] * 3, 0.1, 100, 0.5, 5, [1.0] * 4, math.log(1000 / 16), [],
        )  # fmt: skip
    assert_same(ops.DenseDetections(*result), expected)


def test_carries_no_gradient():
    head = random_head(seed=10)
    for x in head["cls_logits"] + head["deltas"]:
        x.requires_grad_()
    detections = ops.dense_detections(**head, **OPTIONS)
    assert not detections.scores.requires_grad and not detections.boxes.requires_grad


def test_allocates_less_than_the_size_of_the_maps():
    if ops.native_status()["cpu"] != "native":
        pytest.skip("cpu kernels are not built; the reference makes copies per anchor")
    cls = torch.full((1, 720, 100, 168), -5.0)
    cls[0, ::50, ::20, ::20] = 1.0
    boxes = [torch.rand(9 * 100 * 168, 4)]
    objectness = torch.zeros(1, 9, 100, 168)

    def run():
        return ops.dense_detections(
            [cls], None, boxes, num_classes=80, factor_logits=[[objectness]], score_thresh=0.05,
            topk=1000, nms_thresh=0.5, max_detections=100,
        )  # fmt: skip

    run()
    status = Path("/proc/self/status")

    def resident(key):
        return int(next(x for x in status.read_text().splitlines() if x.startswith(key)).split()[1])

    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except OSError as error:
        pytest.skip(f"the peak memory cannot be reset here: {error}")
    before = resident("VmRSS")
    run()
    assert resident("VmHWM") - before < 1024  # KiB; the class map has 47 MiB


def test_compiles_without_a_graph_break():
    head = random_head(seed=12)

    def detect(cls_logits, deltas):
        return ops.dense_detections(
            **head | {"cls_logits": [x + 0 for x in cls_logits], "deltas": deltas}, **OPTIONS
        )

    compiled = torch.compile(detect, fullgraph=True, backend="aot_eager")
    arguments = head["cls_logits"], head["deltas"]
    assert_same(ops.DenseDetections(*compiled(*arguments)), detect(*arguments))


MAP = torch.zeros(2, 6, 4, 5)
GOOD = {
    "cls_logits": [MAP],
    "deltas": [torch.zeros(2, 8, 4, 5)],
    "anchors": [torch.zeros(40, 4)],
    "num_classes": 3,
    "factor_logits": [[torch.zeros(2, 2, 4, 5)]],
    **OPTIONS,
}
BAD = [
    ({"cls_logits": []}, ValueError, "cls_logits must have 1 to 12 levels, got 0"),
    ({"cls_logits": [MAP.long()]}, TypeError, r"cls_logits\[0\] must be a floating-point tensor"),
    ({"cls_logits": [MAP[0]]}, ValueError, r"cls_logits\[0\] must have shape .* anchors \* 3"),
    ({"num_classes": 4}, ValueError, r"cls_logits\[0\] must have shape .* anchors \* 4"),
    ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
    ({"deltas": [MAP, MAP]}, ValueError, "deltas must have 1 levels like cls_logits, got 2"),
    (
        {"deltas": [MAP]},
        ValueError,
        r"deltas\[0\] must have shape \(2, 8, 4, 5\) .* \(2, 6, 4, 5\)",
    ),
    ({"anchors": [torch.zeros(39, 4)]}, ValueError, r"anchors\[0\] must have shape \(40, 4\) or"),
    ({"anchors": [torch.zeros(40, 4).to("meta")]}, ValueError, r"anchors\[0\] is on meta"),
    ({"factor_logits": [[MAP]]}, ValueError, r"factor_logits\[0\]\[0\] must have shape \(2, 2, 4"),
    ({"factor_logits": [[torch.zeros(2, 2, 4, 5)]] * 4}, ValueError, "at most 3 factors, got 4"),
    ({"exponents": [1.0]}, ValueError, "exponents must have 1 number for the class"),
    ({"exponents": [1.0, -1.0]}, ValueError, "exponents must be finite and at least 0"),
    ({"floors": [0.0, 0.0, 0.0]}, ValueError, "floors must have 1 number for the class"),
    ({"floors": [0.0, NAN]}, ValueError, "floors must be numbers"),
    ({"score_thresh": NAN}, ValueError, "score_thresh must be a number"),
    ({"nms_thresh": -0.1}, ValueError, "nms_thresh must be 0 or more, got -0.1"),
    ({"topk": 0}, ValueError, "topk must be at least 1, got 0"),
    ({"max_detections": 0}, ValueError, "max_detections must be at least 1, got 0"),
    ({"weights": [1.0, 1.0, 0.0, 1.0]}, ValueError, "weights must be four positive numbers"),
    ({"scale_clamp": NAN}, ValueError, "scale_clamp must be a number"),
    ({"image_sizes": [(4, 5)]}, ValueError, "image_sizes must be .* each of 2 images, got 2"),
]


@pytest.mark.parametrize("change, error, message", BAD)
def test_errors_name_the_argument(change, error, message):
    assert ops.dense_detections(**GOOD).counts.shape == (2,)
    with pytest.raises(error, match=message):
        ops.dense_detections(**GOOD | change)


@pytest.mark.parametrize(
    "position, value, message",
    [
        (0, [], "cls_logits must have 1 to 12 levels"),
        (0, [MAP.half()], "cls_logits must be float32 or float64"),
        (0, [MAP[:, :5]], "cls_logits must have shape"),
        (1, [MAP], "deltas must have 8 channels"),
        (2, [], "deltas and anchors must have the levels"),
        (2, [torch.zeros(39, 4)], "anchors must have one box per anchor"),
        (2, [torch.zeros(40, 4).double()], "anchors must have the dtype of cls_logits"),
        (3, [], "factor_logits must have a map per level"),
        (3, [MAP], "factor_logits must have 2 channels"),
        (4, 0, "num_classes must be at least 1"),
        (5, [1.0, -1.0], "exponents must be at least 0"),
        (5, [], "exponents must have 1 to 4 numbers"),
        (6, [0.0], "floors must have one number for each exponent"),
        (8, 0, "topk must be at least 1"),
        (9, -1.0, "nms_thresh must be at least 0"),
        (10, 0, "max_detections must be at least 1"),
        (11, [1.0], "weights must be four numbers"),
        (13, [1, 2, 3], "image_sizes must be height and width"),
    ],
)
def test_kernels_reject_what_the_wrapper_rejects(native_device, position, value, message):
    arguments = [
        GOOD["cls_logits"], GOOD["deltas"], GOOD["anchors"], GOOD["factor_logits"][0], 3,
        [1.0, 1.0], [0.0, 0.0], 0.1, 100, 0.5, 5, [1.0] * 4, 4.0, [],
    ]  # fmt: skip
    arguments[position] = value
    for i in range(4):
        arguments[i] = [x.to(native_device) for x in arguments[i]]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.resobj_d2.dense_detections(*arguments)
