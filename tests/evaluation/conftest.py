"""The real evaluation fixtures."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def coco_eval_data():
    """Folder with COCO's own evaluation example; it is not part of the repository."""
    folder = SHARED / "coco_eval"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: real COCO results are not part of the repository")
    return folder
