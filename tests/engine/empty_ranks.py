"""Two processes that see no object, for so many steps: python -m tests.engine.empty_ranks 400"""

import sys

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

import tests.toy_backbone  # noqa: F401 (registers it)
from resobj_d2.config import add_resobj_config
from resobj_d2.launch import launch
from tests.conftest import TINY

RESOBJ = [
    "MODEL.DENSE.OBJECTNESS.ENABLED", "True",
    "MODEL.DENSE.QUALITY.ENABLED", "True",
    "MODEL.DENSE.PRIORS.SCALES_PER_OCTAVE", "1",
]  # fmt: skip


def empty_image(seed):
    instances = Instances((32, 32))
    instances.gt_boxes, instances.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0).long()
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 255
    return {"image": image, "instances": instances}


def train(steps):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.merge_from_list([*TINY, *RESOBJ])
    model = DistributedDataParallel(build_model(cfg), broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with EventStorage() as storage:
        for step in range(steps):
            losses = model([empty_image(2 * step + comm.get_rank())])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            missing = [name for name, p in model.named_parameters() if p.grad is None]
            assert not missing, missing
            optimizer.step()
            storage.step()
    assert all(torch.isfinite(p).all() for p in model.state_dict().values())
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert all(torch.equal(weights, other) for other in comm.all_gather(weights))
    print(f"rank {comm.get_rank()}: {step + 1} steps", flush=True)


if __name__ == "__main__":
    launch(train, num_processes=2, dist_url="auto", args=(int(sys.argv[1]),))
