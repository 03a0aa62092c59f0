"""A catalog that forgets what a test registered, and the real evaluation fixtures."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def clean_catalogs():
    """Remove what a test registered."""
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.remove(name)


@pytest.fixture
def coco_eval_data():
    """Folder with COCO's own evaluation example; it is not part of the repository."""
    folder = SHARED / "coco_eval"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: real COCO results are not part of the repository")
    return folder
