"""The real evaluation fixtures."""

import pytest


@pytest.fixture
def coco_eval_data(shared_data):
    """Folder with COCO's own evaluation example; it is not part of the repository."""
    folder = shared_data / "coco_eval"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: real COCO results are not part of the repository")
    return folder


@pytest.fixture(params=["pycocotools", "faster-coco-eval"])
def backend_name(request):
    if request.param == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is optional")
    return request.param
