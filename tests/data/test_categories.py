import pytest
from detectron2.data import MetadataCatalog

from resobj_d2.data.categories import (
    category_names,
    check_stored_classes,
    dataset_categories,
)

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


STORED = [{"id": 7, "name": "dining_table"}, {"id": 9, "name": "dog"}]


@pytest.mark.parametrize("names", [["dining_table", "dog"], ["Dining table", "DOG"], None])
def test_the_classes_of_a_checkpoint_fit(clean_catalogs, names):
    metadata = MetadataCatalog.get("stored_classes_fit")
    if names:
        metadata.set(thing_classes=names)
    check_stored_classes(STORED, ["stored_classes_fit"])


@pytest.mark.parametrize(
    "names, message",
    [
        (["dog", "dining_table"], "has them in another order: dog, dining_table.*classes: .'dini"),
        (["dining_table", "cat"], "has others: dining_table, cat"),
        (["dining_table", "dog", "cat"], "has others"),
    ],
)
def test_a_data_set_of_other_classes_is_refused(clean_catalogs, names, message):
    MetadataCatalog.get("stored_classes_differ").set(thing_classes=names)
    with pytest.raises(ValueError, match=f"'stored_classes_differ' {message}"):
        check_stored_classes(STORED, ["stored_classes_differ"])


@pytest.mark.parametrize("stored", [None, [], {}, 3, ["cat"], [{"id": 1}], [{"name": 5}]])
def test_what_other_programs_store_is_not_taken_for_classes(clean_catalogs, stored):
    MetadataCatalog.get("stored_classes_none").set(thing_classes=["a"])
    check_stored_classes(stored, ["stored_classes_none"])
    assert category_names(stored) == []
