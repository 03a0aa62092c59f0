"""The key of a run: it changes with everything that decides the result, and with nothing else."""

import json
import shutil

import numpy as np
import pytest

from resobj_d2.data.record import AnnotationTable, Category, ImageTable, Record
from resobj_d2.study.execution import environments
from resobj_d2.study.fingerprint import data_checksum, module_checksum, source_checksum
from resobj_d2.study.plan import StudyError, read_plan
from resobj_d2.study.runs import resolve

from .conftest import remove_data_sets

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def keys(file):
    return {(run.method, run.seed): run.key for run in resolve(read_plan(file))}


def test_runs_are_methods_by_seeds_and_all_differ(study_file):
    runs = resolve(read_plan(study_file()))
    assert [(run.method, run.seed) for run in runs] == [
        ("fl", 1), ("ce", 1), ("fl", 2), ("ce", 2), ("fl", 3), ("ce", 3),
    ]  # fmt: skip
    assert len({run.key for run in runs}) == 6
    decides = runs[0].decides
    assert decides["config"]["SOLVER"]["MAX_ITER"] == 2
    assert decides["versions"].keys() == {"resobj_d2", "detectron2", "torch"}
    assert decides["data"].keys() == {"study_train", "study_val"}
    assert decides["files"].keys() == {"tests.toy_backbone"}
    assert runs[0].metric == "bbox/AP"


def test_a_method_may_have_fewer_seeds(study_file):
    before = keys(study_file())
    after = keys(study_file(("SigmoidCE}}", "SigmoidCE}, seeds: [1, 3]}")))
    assert after == {place: key for place, key in before.items() if place != ("ce", 2)}


def test_the_place_of_data_and_the_name_of_a_method_do_not_decide(
    study_file, scenes_root, tmp_path
):
    before = keys(study_file())
    shutil.copytree(scenes_root, tmp_path / "elsewhere")
    remove_data_sets()
    root = str(scenes_root)
    elsewhere = str(tmp_path / "elsewhere")
    after = keys(study_file((root, elsewhere), (root, elsewhere), ("  fl:", "  other:")))
    assert before["fl", 1] == after["other", 1] and before["ce", 3] == after["ce", 3]


def test_an_option_decides_where_it_applies(study_file):
    before = keys(study_file())
    after = keys(study_file(("SigmoidCE", "GHMCLoss")))
    assert before["fl", 1] == after["fl", 1] and before["ce", 1] != after["ce", 1]
    longer = keys(study_file(("MAX_ITER: 2", "MAX_ITER: 3")))
    assert not set(before.values()) & set(longer.values())


def test_weights_decide_by_their_bytes(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"one")
    (tmp_path / "b.pth").write_bytes(b"one")
    (tmp_path / "c.pth").write_bytes(b"two")
    a, b, c = (source_checksum(str(tmp_path / f"{name}.pth")) for name in "abc")
    assert a == b != c
    assert source_checksum("detectron2://x/y.pkl") == "detectron2://x/y.pkl"
    assert source_checksum("package:numpy") == f"numpy {np.__version__}"


def test_missing_weights_are_not_taken_for_a_module(tmp_path, monkeypatch):
    (tmp_path / "weights_of_mine").mkdir()
    (tmp_path / "weights_of_mine/__init__.py").write_text("raise SystemExit('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert source_checksum("weights_of_mine.pth") == "weights_of_mine.pth"
    assert source_checksum("json") == "json"
    assert module_checksum("json") == source_checksum(json.__file__)


def record(tmp_path, **changes):
    values = {
        "classes": [0, 1], "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "ids": [1, 2], "name": "cat",
        "file": "a.png", "masks": [None, [np.array([1.0, 2, 3, 4, 5, 6])]],
    } | changes  # fmt: skip
    path = tmp_path / values["file"]
    path.write_bytes(b"12345")
    table = AnnotationTable(
        ids=values["ids"],
        images=np.zeros(2, np.int64),
        classes=np.array(values["classes"]),
        boxes=np.array(values["boxes"], dtype=np.float64),
        areas=np.array([12.0, 56.0]),
        crowd=np.zeros(2, bool),
        difficult=np.zeros(2, bool),
        masks=values["masks"],
        keypoints=[None, None],
    )
    images = ImageTable(ids=[1], files=[str(path)], widths=np.array([20]), heights=np.array([10]))
    categories = (Category(id=1, name=values["name"]), Category(id=2, name="dog"))
    return Record(name="n", source="s", categories=categories, images=images, annotations=table)


def test_data_decide_by_their_content(tmp_path):
    same = data_checksum(record(tmp_path))
    assert data_checksum(record(tmp_path, file="b.png")) == same
    others = [
        record(tmp_path, classes=[1, 0]),
        record(tmp_path, boxes=[[1, 2, 3, 4], [5, 6, 7, 9]]),
        record(tmp_path, ids=[1, "2"]),
        record(tmp_path, name="cow"),
        record(tmp_path, masks=[None, None]),
        record(tmp_path, masks=[None, {"size": [10, 20], "counts": b"ab"}]),
    ]
    longer = record(tmp_path, file="c.png")
    checksums = [data_checksum(one) for one in others]
    (tmp_path / "c.png").write_bytes(b"123456")  # another picture
    assert len({same, *checksums, data_checksum(longer)}) == 8


@pytest.mark.parametrize(
    "change, message",
    [
        (("options: {MODEL.DENSE.CLS_LOSS.NAME: SigmoidCE}", "config: cells_retinanet_f"),
         "ce on scenes: config file not found"),
        (("MODEL.DENSE.CLS_LOSS.NAME: SigmoidCE", "MODEL.DENSE.CLS_LOS.NAME: SigmoidCE"),
         "ce on scenes: its options: there is no key MODEL.DENSE.CLS_LOS"),
        (("CLS_LOSS.NAME: SigmoidCE", "CLS_LOSS.NAME: SigmoidCR"), "Did you mean SigmoidCE"),
        (("MODEL.DENSE.CLS_LOSS.NAME: SigmoidCE", "MODEL.DENSE.CLS_LOSS.NAME: SigmoidFocalLoss"),
         "methods fl and ce have the same configuration"),
        (("NUM_CLASSES: 8", "NUM_CLASSES: 7"), "fl on scenes: "),
        (("TEST: [study_val]", "TEST: []"), "DATASETS.TEST is empty"),
        (("name: tiny", "name: tiny\nmetric: bbox/AQ"), "metric is 'bbox/AQ'"),
        (("config: resobj_d2://Base-Dense.yaml", ""), "there is no config"),
    ],
)  # fmt: skip
def test_mistakes_name_the_method_and_are_one_line(study_file, change, message):
    with pytest.raises(StudyError) as error:
        resolve(read_plan(study_file(change)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_the_user_has_set_in_the_environment_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    found = environments(at_once=2, cores=9, uses_gpu=False)(0)
    assert found == {"OMP_NUM_THREADS": "4", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
