import pytest

from resobj_d2.compat import launch


@pytest.mark.parametrize("number", [0, 1])
def test_none_and_one_are_this_process(number):
    calls = []
    launch(calls.append, num_processes=number, dist_url="auto", args=("ran",))
    assert calls == ["ran"]


def test_negative_number_of_processes():
    with pytest.raises(ValueError, match=r"--num-gpus\) is negative: -1"):
        launch(print, num_processes=-1, dist_url="auto")
