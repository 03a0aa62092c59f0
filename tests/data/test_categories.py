import pytest
from detectron2.data import MetadataCatalog

from resobj_d2.data.categories import dataset_categories

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def test_ids_of_the_data_set_in_the_order_of_the_class_numbers():
    MetadataCatalog.get("pets").set(
        thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={7: 1, 3: 0}
    )
    expected = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert dataset_categories(["nameless", "pets"]) == expected


def test_coco_has_eighty_names_without_its_files():
    categories = dataset_categories(("coco_2017_train",))
    assert len(categories) == 80
    assert categories[0] == {"id": 1, "name": "person"}
    assert categories[79] == {"id": 90, "name": "toothbrush"}


def test_class_numbers_where_the_data_set_has_no_ids():
    MetadataCatalog.get("flowers").thing_classes = ["rose", "tulip"]
    assert dataset_categories(["flowers"]) == [
        {"id": 0, "name": "rose"},
        {"id": 1, "name": "tulip"},
    ]


def test_no_names():
    assert dataset_categories(["nameless"]) == [] == dataset_categories(())
