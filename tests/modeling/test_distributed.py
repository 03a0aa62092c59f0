"""Two processes, one without objects: same normaliser, averaged gradients, no deadlock."""

import sys

import pytest
import torch
import torch.distributed as dist
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

import tests.toy_backbone  # noqa: F401 (registers it)
from resobj_d2.config import add_resobj_config
from resobj_d2.launch import close_process_groups

METHODS = {
    "fl": [],
    "resobj_gated_conf": [
        "MODEL.DENSE.OBJECTNESS.ENABLED", "True",
        "MODEL.DENSE.STAGES", "[{'CLS': 'own', 'TOWER': 'gated'}]",
        "MODEL.DENSE.QUALITY.ENABLED", "True",
    ],
    "ohem_ghm": [
        "MODEL.DENSE.SAMPLER.NAME", "OHEMSampler",
        "MODEL.DENSE.SAMPLER.POSITIVE_FRACTION", "0.25",
        "MODEL.DENSE.BOX_LOSS.NAME", "GHMRLoss",
    ],
}  # fmt: skip
RPN = "resobj_rpn"  # with Faster R-CNN
CORNERS = torch.tensor([[4.0, 4.0, 40.0, 36.0], [30.0, 20.0, 60.0, 60.0]])


def build(folder, name):
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.merge_from_file(f"{folder}/{name}.yaml")
    torch.manual_seed(0)
    return build_model(cfg)


def image_of(rank):
    """The first has two objects, the second none."""
    instances = Instances((64, 64))
    count = 2 if rank == 0 else 0
    instances.gt_boxes, instances.gt_classes = Boxes(CORNERS[:count]), torch.arange(2)[:count]
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(rank))
    return {"image": image * 255, "instances": instances}


def step(model, batch, name):
    """Gradients of the losses by parameter; for Faster R-CNN only those of the RPN's losses."""
    with EventStorage():
        losses = model(batch)
    chosen = {key: loss for key, loss in losses.items() if name != RPN or "rpn" in key}
    sum(chosen.values()).backward()
    return {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}


def work(rank, folder):
    """Run in each of the two processes: one step of every method, saved for the tests."""
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    found = {}
    for name in (*METHODS, RPN):
        model = torch.nn.parallel.DistributedDataParallel(
            build(folder, name), broadcast_buffers=False, find_unused_parameters=name == RPN
        )
        found[name] = {"gradients": step(model, [image_of(rank)], name)}
        if name != RPN:
            detector = model.module
            stages = detector.streams["anchors"].stages
            counts = [v for k, v in detector.statistics.items() if k.startswith("num_foreground")]
            found[name]["means"] = torch.stack([stage.normalizer.mean for stage in stages])
            found[name]["foreground"] = torch.stack(counts)
    torch.save(found, f"{folder}/rank{rank}.pth")
    close_process_groups()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_cfg, tiny_rcnn):
    """The configurations of all methods, for the processes to load."""
    path = tmp_path_factory.mktemp("two")
    for name, options in METHODS.items():
        (path / f"{name}.yaml").write_text(tiny_cfg(*options).dump())
    rpn = tiny_rcnn(
        "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", "True",
        "MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll",
    )  # fmt: skip
    (path / f"{RPN}.yaml").write_text(rpn.dump())
    return path


@pytest.fixture(scope="module")
def both(folder, repository, warm_python):
    """The results of both processes, by method."""
    code = "import sys; from tests.modeling.test_distributed import work; "
    code += "work(int(sys.argv[1]), sys.argv[2])"
    processes = [
        warm_python.start([sys.executable, "-c", code, str(rank), str(folder)], cwd=repository)
        for rank in (0, 1)
    ]
    assert [p.wait(timeout=200) for p in processes] == [0, 0]
    return [torch.load(folder / f"rank{rank}.pth") for rank in (0, 1)]


@pytest.mark.parametrize("method", METHODS)
def test_empty_process_stays_in_sync(both, method):
    first, second = (found[method] for found in both)
    assert (first["foreground"] > 0).all() and (second["foreground"] == 0).all()
    mean_count = (first["foreground"] + 1) / 2  # an empty process counts as 1
    torch.testing.assert_close(first["means"], 90 + 0.1 * mean_count)
    assert torch.equal(first["means"], second["means"])
    for name, gradient in first["gradients"].items():
        assert torch.equal(gradient, second["gradients"][name]), name


def test_two_processes_train_the_rpn_as_one_with_both_images(both, folder):
    expected = step(build(folder, RPN), [image_of(0), image_of(1)], RPN)
    first, second = (found[RPN]["gradients"] for found in both)
    trained = {n: g for n, g in expected.items() if "proposal_generator" in n or "backbone" in n}
    assert any(".residuals.1." in name for name in trained)
    for name, gradient in trained.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-5)
