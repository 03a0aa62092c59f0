"""The real evaluation fixtures."""

import pytest


@pytest.fixture
def coco_eval_data(shared_data):
    """Folder with COCO's own evaluation example; it is not part of the repository."""
    folder = shared_data / "coco_eval"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: real COCO results are not part of the repository")
    return folder
