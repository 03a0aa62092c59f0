"""Every mistake in a study's yaml is one line that says what is wrong."""

import pytest

from resobj_d2.config.zoo import find_config
from resobj_d2.study.plan import StudyError, read_plan

GOOD = """
name: cells
seeds: [1, 2]
config: small/Base-Cells-RetinaNet.yaml
options: {SOLVER.MAX_ITER: 300, MODEL: {DENSE: {NUM_CLASSES: 3}}}
datasets:
  cells: {options: {INPUT.MIN_SIZE_TEST: 256}}
methods:
  fl:
  obj: methods/retinanet_obj.yaml
  both: {config: [methods/retinanet_obj.yaml, mine.yaml], options: {SOLVER.BASE_LR: 0.01}}
  once: {config: methods/fsaf.yaml, seeds: [2]}
"""


def write(folder, text):
    file = folder / "study.yaml"
    file.write_text(text)
    return file


def test_a_study_is_read(tmp_path):
    plan = read_plan(write(tmp_path, GOOD))
    assert (plan.name, plan.seeds, plan.baseline, plan.metric) == ("cells", (1, 2), "fl", "AP")
    assert plan.common.options == {"SOLVER.MAX_ITER": 300, "MODEL.DENSE.NUM_CLASSES": 3}
    assert [part.configs for part in plan.methods] == [
        (),
        ("methods/retinanet_obj.yaml",),
        ("methods/retinanet_obj.yaml", "mine.yaml"),
        ("methods/fsaf.yaml",),
    ]
    assert [part.seeds for part in plan.methods] == [(), (), (), (2,)]
    assert plan.datasets[0].options == {"INPUT.MIN_SIZE_TEST": 256}


def test_a_single_seed_may_be_0(tmp_path):
    text = GOOD.replace("seeds: [1, 2]", "seeds: 0").replace("seeds: [2]", "seeds: 0")
    plan = read_plan(write(tmp_path, text))
    assert plan.seeds == plan.methods[-1].seeds == (0,)


def test_name_and_baseline_have_defaults(tmp_path):
    plan = read_plan(write(tmp_path, GOOD.replace("name: cells\n", "")))
    assert (plan.name, plan.baseline) == ("study", "fl")


@pytest.mark.parametrize(
    "before, after, message",
    [
        ("seeds: [1, 2]", "sedes: [1, 2]", "there is no key 'sedes'. Did you mean seeds"),
        ("seeds: [1, 2]", "", "there are no seeds"),
        ("seeds: [1, 2]", "seeds: []", "there are no seeds"),
        ("seeds: [1, 2]", "seeds: [1, 1]", "seeds has 1 twice"),
        ("name: cells", "baseline: once", "once: the baseline needs all seeds of the study"),
        ("seeds: [1, 2]", "seeds: [1, true]", "seeds must be whole numbers from 0 on, got True"),
        ("seeds: [1, 2]", "seeds: [1, -2]", "seeds must be whole numbers from 0 on, got -2"),
        ("seeds: [1, 2]", "seeds: [1, 2]\nseeds: [3]", "the key 'seeds' occurs twice"),
        ("  fl:", "  fl:\n  fl: x.yaml", "the key 'fl' occurs twice"),
        ("seeds: [2]", "seeds: [3]", "methods: once: seed 3 is none of the study's seeds"),
        ("seeds: [2]", "seeds: []", "methods: once: there are no seeds"),
        ("seeds: [2]", "seeds: [2, 2]", "methods: once: seeds has 2 twice"),
        ("256}}", "256}, seeds: [1]}", "datasets: cells: there is no key 'seeds'"),
        ("  fl:", "  no:", "methods: False is no name"),
        ("  fl:", "  a/b:", "methods: 'a/b' is no name"),
        ("  fl:", "  fl: {configs: x}", "there is no key 'configs'. Did you mean config"),
        ("  fl:", "  fl: 3", "methods: fl: config must name one yaml or several"),
        ("  fl:", "  fl: {options: [3]}", "methods: fl: options must be KEY: VALUE"),
        ("  fl:", "  fl: {options: {SEED: 3}}", "methods: fl: SEED is set by the study"),
        ("name: cells", "name: cells\nbaseline: obk", "of the methods. Did you mean obj"),
        ("name: cells", "name: cells\nmetric: 3", "metric must be the name of a result, got 3"),
        ("{SOLVER.MAX_ITER: 300,", "{SOLVER.MAX_ITER: 300, SOLVER: {MAX_ITER: 3},",
         "option SOLVER.MAX_ITER is there twice"),
        ("name: cells", "name: ../cells", "'../cells' is no name"),
        ("name: cells", "name: !!python/object:os.system x", "refused"),
        (GOOD, "[1, 2]", "is not a study"),
        (GOOD, "", "is not a study"),
        ("  fl:\n", "  fl: {a: [\n", "is not valid yaml"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, before, after, message):
    assert before in GOOD
    with pytest.raises(StudyError) as error:
        read_plan(write(tmp_path, GOOD.replace(before, after, 1)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_methods_must_be_named(tmp_path):
    text = GOOD[: GOOD.index("methods:")] + "methods: [fl, obj]\n"
    with pytest.raises(StudyError, match="methods must be NAME: CONFIG"):
        read_plan(write(tmp_path, text))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no study"):
        read_plan(tmp_path / "none.yaml")


def test_the_studies_of_the_repository_name_what_there_is(repository):
    files = sorted((repository / "studies").glob("*.yaml"))
    assert files
    for file in files:
        plan = read_plan(file)
        assert len(plan.seeds) >= 3 and len(plan.methods) >= 2
        for part in (plan.common, *plan.datasets, *plan.methods):
            for name in part.configs:
                assert find_config(name).is_file()
