import weakref

import pytest
import torch.distributed as dist
from detectron2.utils import comm

from resobj_d2.compat import close_process_groups, launch


@pytest.mark.parametrize("number", [0, 1])
def test_none_and_one_are_this_process(number):
    calls = []
    launch(calls.append, num_processes=number, dist_url="auto", args=("ran",))
    assert calls == ["ran"]


def test_negative_number_of_processes():
    with pytest.raises(ValueError, match=r"--num-gpus\) is negative: -1"):
        launch(print, num_processes=-1, dist_url="auto")


def test_no_process_group_outlives_its_closing(tmp_path):
    """Not even those that Detectron2 keeps: their threads would end with the interpreter."""
    meet = f"file://{tmp_path}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    groups = [weakref.ref(comm._get_global_gloo_group())]
    comm._LOCAL_PROCESS_GROUP = dist.new_group([0])
    groups.append(weakref.ref(comm._LOCAL_PROCESS_GROUP))
    assert all(group() is not None for group in groups)
    close_process_groups()
    assert not dist.is_initialized()
    assert all(group() is None for group in groups)
