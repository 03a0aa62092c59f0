"""Two processes, one of which sees no object: same normaliser, averaged gradients, no hang."""

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

    from resobj_d2.compat import close_process_groups
    from resobj_d2.config import add_resobj_config

    rank, folder, options = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.merge_from_list(options)
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(build_model(cfg), broadcast_buffers=False)
    instances = Instances((64, 64))
    count = 2 if rank == 0 else 0
    corners = torch.tensor([[4.0, 4.0, 40.0, 36.0], [30.0, 20.0, 60.0, 60.0]])
    instances.gt_boxes = Boxes(corners[:count])
    instances.gt_classes = torch.arange(2)[:count]
    torch.manual_seed(rank)
    batch = [{"image": torch.rand(3, 64, 64) * 255, "instances": instances}]
    sum(model(batch).values()).backward()
    stages = model.module.streams["anchors"].stages
    torch.save(
        {
            "means": torch.stack([stage.normalizer.mean for stage in stages]),
            "foreground": torch.stack(
                [v for k, v in model.module.statistics.items() if k.startswith("num_foreground")]
            ),
            "gradients": {n: p.grad for n, p in model.module.named_parameters()},
        },
        f"{folder}/rank{rank}.pth",
    )
    del model, stages
    close_process_groups()
"""


EVERYTHING = [
    "MODEL.DENSE.OBJECTNESS.ENABLED", "True",
    "MODEL.DENSE.STAGES", "[{'CLS': 'own', 'TOWER': 'gated'}]",
    "MODEL.DENSE.QUALITY.ENABLED", "True",
]  # fmt: skip
OHEM_GHM = [
    "MODEL.DENSE.SAMPLER.NAME", "OHEMSampler",
    "MODEL.DENSE.SAMPLER.POSITIVE_FRACTION", "0.25",
    "MODEL.DENSE.BOX_LOSS.NAME", "GHMRLoss",
]  # fmt: skip


@pytest.mark.parametrize(
    "method", [[], EVERYTHING, OHEM_GHM], ids=["fl", "resobj_gated_conf", "ohem_ghm"]
)
def test_empty_process_keeps_step(tiny_options, tmp_path, method):
    options = [*tiny_options, *method]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER), str(rank), str(tmp_path), *options]
        )
        for rank in (0, 1)
    ]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1))
    assert (first["foreground"] > 0).all() and (second["foreground"] == 0).all()
    mean_count = (first["foreground"] + 1) / 2  # an empty process counts as one
    torch.testing.assert_close(first["means"], 90 + 0.1 * mean_count)
    assert torch.equal(first["means"], second["means"])
    for name, gradient in first["gradients"].items():
        assert torch.equal(gradient, second["gradients"][name]), name
