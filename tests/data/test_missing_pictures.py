import re

import pytest

from resobj_d2.data.missing_pictures import check_pictures_exist


@pytest.fixture
def records(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        path.touch()
    return paths, [{"file_name": str(path), "dataset_name": "pets"} for path in paths]


def test_all_are_there(records):
    check_pictures_exist(records[1], ["pets"])
    check_pictures_exist([{"file_name": "s3://bucket/a.png"}, {"image": 1}], ["pets"])


def test_missing_ones_are_counted_and_three_are_named(records):
    paths, rows = records
    paths[1].unlink()
    with pytest.raises(FileNotFoundError) as caught:
        check_pictures_exist(rows, ["pets"])
    assert str(caught.value) == (
        f"dataset 'pets': 1 of 6 pictures does not exist: {paths[1]}. Put them there, or take them "
        "out of the annotations"
    )
    for path in paths[2:5]:
        path.unlink()
    shown = ", ".join(map(str, paths[1:4]))
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"4 of 6 pictures do not exist: {shown}, ...")
    ):
        check_pictures_exist(rows, ["pets"])


def test_records_that_do_not_know_their_set_and_label_maps(tmp_path):
    (tmp_path / "a.png").touch()
    record = {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "b.png")}
    with pytest.raises(FileNotFoundError, match="'one, two': 1 of 2 pictures does.*b.png"):
        check_pictures_exist([record], ["one", "two"])


@pytest.mark.usefixtures("clean_catalogs")
def test_evaluation_and_training_ask_before_they_start(coco_content, write_coco, tmp_path):
    from resobj_d2.config import load_config
    from resobj_d2.data.register import register_datasets
    from resobj_d2.engine.loaders import build_train_loader
    from resobj_d2.engine.summary import test_contents

    register_datasets([write_coco(coco_content)])
    options = ["DATASETS.TRAIN", "('pets',)", "DATASETS.TEST", "('pets',)", "MODEL.DEVICE", "cpu"]
    cfg = load_config("", [*options, "MODEL.ROI_HEADS.NUM_CLASSES", "2"], training=False)
    cfg.defrost()
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATASETS.TRAIN = ("pets",)  # which is not kept for an evaluation
    assert test_contents(cfg)["pets"].images == 3
    build_train_loader(cfg)
    (tmp_path / "images" / "2.png").unlink()
    for build in (test_contents, build_train_loader):
        with pytest.raises(
            FileNotFoundError, match="'pets': 1 of 3 pictures does not exist.*2.png"
        ):
            build(cfg)
