"""A value is taken in the type of its key, or refused with a line that says what to write."""

import pytest

from resobj_d2.config import get_config, load_config
from resobj_d2.config.load import merge_file, merge_overrides

CELLS = "small/cells_retinanet_fl"
OFF = {"DATASETS__TRAIN": (), "DATASETS__TEST": ()}


def test_whole_numbers_stand_for_floats_wherever_they_are_given(tmp_path):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(f"_BASE_: 'resobj_d2://{CELLS}.yaml'\nSOLVER: {{BASE_LR: 1}}")
    from_file = get_config(yaml, **OFF)
    from_python = get_config(CELLS, SOLVER__BASE_LR=1, **OFF)
    typed = get_config(CELLS, SOLVER__BASE_LR="1", **OFF)
    for cfg in (from_file, from_python, typed):
        assert cfg.SOLVER.BASE_LR == 1.0 and isinstance(cfg.SOLVER.BASE_LR, float)


def test_paths_of_python_are_strings(tmp_path):
    assert get_config(CELLS, OUTPUT_DIR=tmp_path, **OFF).OUTPUT_DIR == str(tmp_path)


def test_lists_may_be_spelt_as_in_yaml():
    spelling = "[{name: my_train, json: a.json, images: photos}]"
    cfg = get_config(CELLS, **OFF)
    merge_overrides(cfg, ["DATASETS.REGISTER", spelling, "DATASETS.TRAIN", "[my_train, other]"])
    assert cfg.DATASETS.REGISTER == [{"name": "my_train", "json": "a.json", "images": "photos"}]
    assert cfg.DATASETS.TRAIN == ("my_train", "other")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("DATASETS.TRAIN", "my_train", """got 'my_train': write "('my_train',)\""""),
        ("IMPORTS", "my_mod", """IMPORTS must be a list, got 'my_mod': write "['my_mod']\""""),
        ("SOLVER.STEPS", "500", 'SOLVER.STEPS must be a list, got 500: write "(500,)"'),
        ("SOLVER.MAX_ITER", "ten", "SOLVER.MAX_ITER must be a whole number, got 'ten'"),
        ("SOLVER.MAX_ITER", "10.5", "SOLVER.MAX_ITER must be a whole number, got 10.5"),
        ("SOLVER.BASE_LR", "True", "SOLVER.BASE_LR must be a number, got True"),
        ("SOLVER.AMP.ENABLED", "true", "SOLVER.AMP.ENABLED must be True or False, got 'true'"),
        ("OUTPUT_DIR", "2020", """OUTPUT_DIR must be a string, got 2020: write "'2020'\""""),
        ("MODEL.DENSE", "5", "MODEL.DENSE is a node with keys of its own, got '5'"),
        ("DATASETS.REGISTER", "{'name': 'a'}", "got {'name': 'a'}: as in \"[{'name': 'my_train'"),
        ("DATASETS.REGISTER", "[{name: a", "DATASETS.REGISTER is not valid yaml: "),
    ],
)
def test_values_of_another_kind_are_explained(key, value, message, tmp_path):
    with pytest.raises(ValueError) as caught:
        load_config(CELLS, [key, value])
    text = str(caught.value)
    assert message in text and "Type mismatch" not in text and len(text) < 200


def test_a_file_is_named_with_its_key(tmp_path):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text("DATASETS: {TRAIN: my_train}")
    with pytest.raises(ValueError, match=f"{yaml}: DATASETS.TRAIN must be a list, got 'my_train'"):
        merge_file(get_config(CELLS, **OFF), str(yaml))


@pytest.mark.parametrize("name", ["methods/retinanet_resobj", "retinanet_resobj", "600_1x"])
def test_parts_of_configurations_are_no_configurations(name):
    with pytest.raises(ValueError, match="to build on, not a complete configuration") as caught:
        get_config(name)
    assert "_BASE_" in str(caught.value) and "or take one that does: " in str(caught.value)
