import pytest

from resobj_d2.demo import _remove_former_run


def test_demo_clears_its_own_folder_only(tmp_path):
    own, other = tmp_path / "demo", tmp_path / "training"
    _remove_former_run(own)
    (own / "model_final.pth").touch()
    (own / "detections.png").touch()
    _remove_former_run(own)
    assert not (own / "model_final.pth").exists() and (own / "detections.png").exists()

    other.mkdir()
    (other / "model_final.pth").touch()
    with pytest.raises(FileExistsError, match="no demo wrote"):
        _remove_former_run(other)
    assert (other / "model_final.pth").exists()
