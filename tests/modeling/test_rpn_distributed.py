"""Two processes, one without an object, train the RPN as one process with both images would."""

import subprocess
import sys
import textwrap

import pytest
import torch

WORKER = """
    import sys

    import torch
    import torch.distributed as dist
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    from resobj_d2.compat import close_process_groups
    from resobj_d2.config import add_resobj_config

    name, folder = sys.argv[1:]
    torch.set_num_threads(1)
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.merge_from_file(f"{folder}/config.yaml")
    torch.manual_seed(0)
    model = build_model(cfg)
    batch = []
    for seed, count in enumerate((2, 0)):
        instances = Instances((64, 64))
        corners = torch.tensor([[4.0, 4.0, 40.0, 36.0], [30.0, 20.0, 60.0, 60.0]])
        instances.gt_boxes = Boxes(corners[:count])
        instances.gt_classes = torch.arange(2)[:count]
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed))
        batch.append({"image": image * 255, "instances": instances})
    if name != "both":
        meet = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=meet, rank=int(name), world_size=2)
        model = torch.nn.parallel.DistributedDataParallel(
            model, broadcast_buffers=False, find_unused_parameters=True
        )
        batch = [batch[int(name)]]
    with EventStorage():
        losses = model(batch)
    sum(loss for key, loss in losses.items() if "rpn" in key).backward()
    gradients = {
        n.removeprefix("module."): p.grad
        for n, p in model.named_parameters()
        if "proposal_generator" in n or "backbone" in n
    }
    torch.save(gradients, f"{folder}/{name}.pth")
    del model, losses
    if dist.is_initialized():
        close_process_groups()
"""


@pytest.mark.slow
def test_two_processes_are_one_with_both_images(tiny_rcnn, tmp_path):
    cfg = tiny_rcnn(
        "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", "True",
        "MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll",
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(cfg.dump())
    processes = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(WORKER), name, str(tmp_path)])
        for name in ("0", "1", "both")
    ]
    assert [p.wait(timeout=200) for p in processes] == [0, 0, 0]
    first, second, both = (torch.load(tmp_path / f"{name}.pth") for name in ("0", "1", "both"))
    assert any(".residuals.1." in name for name in both)
    for name, gradient in both.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-5)
