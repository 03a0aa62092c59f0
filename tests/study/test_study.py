"""The command: it runs what is missing, and the table says what the results prove."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from resobj_d2.command import run_command
from resobj_d2.process import start_log
from resobj_d2.study.command import main, run_study
from resobj_d2.study.fingerprint import key_of
from resobj_d2.study.plan import StudyError, read_plan
from resobj_d2.study.progress import iteration_of, readable_time
from resobj_d2.study.results import append_result, by_key, read_results
from resobj_d2.study.tables import conclusion, summarise

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def study(tmp_path, trainer):
    """A function: runs a study with a trainer that trains nothing; its status."""

    def run(file, **options):
        start_log()
        return run_study(read_plan(file), tmp_path / "out", jobs=2, train=trainer, **options)

    return run


def lines_of(tmp_path):
    return (tmp_path / "out" / "results.jsonl").read_text().splitlines()


def begun(tmp_path):
    return (tmp_path / "out" / "runs" / "order.txt").read_text().splitlines()


def test_a_study_from_start_to_page(study_file, study, tmp_path, capsys):
    assert study(study_file()) == 0
    text = capsys.readouterr().out
    assert "6 of 6 runs to do, 2 at a time" in text and "[6/6]" in text
    assert "bbox/AP 41.0 in" in text
    # Baseline 41, 42, 43; the other .55, .6, .65 more: mean .6, deviation .05,
    # 4.3027 * .05 / sqrt(3) = .124.
    (row,) = [line for line in text.splitlines() if line.startswith("ce ") and "42.60" in line]
    assert row.split()[:9] == ["ce", "3", "42.60", "2.61", "+0.60", "+0.48", "to", "+0.72", "+"]
    assert "3 of 3 seeds" in row
    assert "ce is better than fl: +0.60 (+0.48 to +0.72)" in text
    results = read_results(tmp_path / "out" / "results.jsonl")
    assert {(one.method, one.seed): one.value for one in results}["ce", 2] == pytest.approx(42.6)
    assert results[0].curve == [[0, 32.0], [1, 41.0]]
    page = (tmp_path / "out" / "study.html").read_text()
    assert page.count("<svg") == 3 and "ce is better than fl" in page and "SigmoidCE" in page
    parser = HTMLParser()
    parser.feed(page)
    # Again: nothing is left to do.
    assert study(study_file()) == 0
    assert len(begun(tmp_path)) == 6 and len(lines_of(tmp_path)) == 6


@pytest.fixture
def results_file(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "results.jsonl"


def test_a_killed_study_goes_on_with_what_is_missing(
    study_file, study, tmp_path, finished, results_file
):
    results_file.write_text("\n".join(finished[:3]) + "\n" + finished[3][:100])  # as it wrote
    assert study(study_file()) == 0
    assert len(begun(tmp_path)) == 3
    keys = {json.loads(line)["key"] for line in finished}
    assert by_key(read_results(results_file)).keys() == keys


def test_a_changed_method_does_not_reuse_results(
    study_file, study, tmp_path, capsys, finished, results_file
):
    results_file.write_text("\n".join(finished) + "\n")
    assert study(study_file(("SigmoidCE}", "SigmoidCE, MODEL.DENSE.TOWER.NUM_CONVS: 2}"))) == 0
    assert len(begun(tmp_path)) == 3  # the baseline is as it was
    text = capsys.readouterr().out
    assert "not used: scenes, ce, seed 1: config.MODEL.DENSE.TOWER.NUM_CONVS 1 there, 2 now" in text


def test_a_failed_run_is_recorded_and_retried_when_asked(
    study_file, study, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("FAILING_SEED", "2")
    assert study(study_file()) == 1
    text = capsys.readouterr().out
    assert "scenes, ce, seed 2: failed: the loss is not finite" in text
    assert "1 of 6 runs has failed; --retry runs it again" in text
    assert "2 (1 failed)" in text
    failed = [one for one in read_results(tmp_path / "out/results.jsonl") if one.error]
    assert [(one.method, one.seed, one.error) for one in failed] == [
        ("ce", 2, "the loss is not finite")
    ]
    monkeypatch.delenv("FAILING_SEED")
    assert study(study_file()) == 1 and len(lines_of(tmp_path)) == 6
    assert study(study_file(), retry=True) == 0 and len(lines_of(tmp_path)) == 7
    assert "+0.60" in capsys.readouterr().out


def test_results_of_other_machines_are_taken_over(study_file, study, tmp_path, capsys, finished):
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(finished[:4]) + "\n")
    (last,) = [x for x in read_results(other) if (x.method, x.seed) == ("fl", 1)]
    decides = {**last.decides, "versions": {**last.decides["versions"], "torch": "1.0"}}
    append_result(other, dataclasses.replace(last, decides=decides, key=key_of(decides)))
    assert study(study_file(), others=[other]) == 0
    assert len(begun(tmp_path)) == 2 and len(lines_of(tmp_path)) == 6
    text = capsys.readouterr().out
    assert "2 of 6 runs to do" in text
    assert f"versions.torch '1.0' there, '{last.decides['versions']['torch']}' now" in text


def test_files_of_results_alone_are_merged_and_shown(tmp_path, capsys, finished):
    for name, part in (("a", finished[:4]), ("b", finished[2:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    output = tmp_path / "merged"
    assert main([*files, "--baseline", "fl", "--output", str(output)]) == 0
    assert "ce is better than fl: +0.60 (+0.48 to +0.72)" in capsys.readouterr().out
    merged = read_results(output / "results.jsonl")
    assert {one.key for one in merged} == {json.loads(line)["key"] for line in finished}
    assert len(merged) == 6 and (output / "study.html").is_file()


def test_without_the_data_results_can_be_shown_as_they_are(
    study_file, study, tmp_path, capsys, finished
):
    file, records = study_file(), tmp_path / "theirs.jsonl"
    text = file.read_text().replace("name: study_train, format: scenes, split: train",
                                    "name: study_train, format: voc, split: train")  # fmt: skip
    file.write_text(text)
    records.write_text("\n".join(finished) + "\n")
    with pytest.raises(StudyError) as error:
        study(file, others=[records])
    command = f"resobj-d2 study {records} --baseline fl"
    assert str(error.value).endswith(f"Results as they are: {command}")
    capsys.readouterr()
    assert main([*command.split()[2:], "--output", str(tmp_path / "merged")]) == 0
    assert "ce is better than fl: +0.60" in capsys.readouterr().out


def test_without_a_run_no_data_are_needed(study_file, study, tmp_path, capsys, finished):
    nowhere = tmp_path / "nowhere"
    file, records = study_file(), tmp_path / "theirs.jsonl"
    file.write_text(re.sub(r'root: "[^"]*"', f'root: "{nowhere}"', file.read_text()))
    records.write_text("\n".join(finished) + "\n")
    old = read_results(records)[0]  # of other data, before
    decides = {**old.decides, "data": dict.fromkeys(old.decides["data"], "0" * 16)}
    changed = {"decides": decides, "key": key_of(decides), "finished": "2000"}
    append_result(records, dataclasses.replace(old, **changed, results={"bbox/AP": 1.0}))
    assert study(file, others=[records], run=False) == 0
    text = capsys.readouterr().out
    assert "ce is better than fl: +0.60 (+0.48 to +0.72)" in text and not nowhere.exists()
    assert "The data were not read" in text and "not used: scenes, fl, seed 1: data.study_" in text
    # What else decides is compared.
    file.write_text(file.read_text().replace("SigmoidCE}", "SigmoidCE, SOLVER.BASE_LR: 0.1}"))
    assert study(file, others=[records], run=False) == 1
    text = capsys.readouterr().out
    assert "not used: scenes, ce, seed 1: config.SOLVER.BASE_LR 0.01 there, 0.1 now" in text
    assert "ce is" not in text and "fl" in text


def test_a_done_run_replaces_a_failed_one_where_files_are_merged(tmp_path, capsys, finished):
    start_log()
    (tmp_path / "done.jsonl").write_text("\n".join(finished) + "\n")
    whole = read_results(tmp_path / "done.jsonl")
    output = tmp_path / "merged"
    output.mkdir()
    failed = dataclasses.replace(whole[0], status="failed", error="no memory", results={}, curve=[])
    append_result(output / "results.jsonl", failed)
    assert main([str(tmp_path / "done.jsonl"), "--output", str(output)]) == 0
    merged = by_key(read_results(output / "results.jsonl"))
    assert {one.status for one in merged.values()} == {"done"} and len(merged) == 6
    # "fl" has finished first.
    text = capsys.readouterr().out
    assert "compared with ce, the first by name" in text
    assert "fl is worse than ce: -0.60 (-0.72 to -0.48)" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.yaml"], "there is no study"),
        (["none.jsonl"], "there is no file of results"),
        (["a.yaml", "b.yaml"], "one study at a time"),
    ],
)
def test_mistakes_of_the_command_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(main, arguments, uses_operators=False) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_one_seed_shows_nothing(study_file, study, tmp_path, capsys):
    assert study(study_file(("seeds: [1, 2, 3]", "seeds: [3]"))) == 0
    assert "ce: +0.65 on one seed, which shows nothing" in capsys.readouterr().out
    rows = summarise(
        read_results(tmp_path / "out" / "results.jsonl"), baseline="fl", methods=["fl", "ce"]
    )
    assert [row.method for row in rows] == ["fl", "ce"] and rows[0].comparison is None
    assert len(conclusion(rows, "fl")) == 1


def test_progress_reads_the_last_iteration(tmp_path):
    assert iteration_of(tmp_path) == 0
    (tmp_path / "metrics.json").write_text('{"iteration": 19}\n{"iteration": 39, "x": 1}\n')
    assert iteration_of(tmp_path) == 40
    assert [readable_time(x) for x in (4.4, 600, 11100)] == ["4 s", "10 min", "3 h 05 min"]


@pytest.mark.slow
def test_a_real_training_is_stopped_and_goes_on(study_file, tmp_path, repository):
    """Killed after its checkpoint, it is resumed; the second start has nothing left to do."""
    file = study_file(("seeds: [1, 2, 3]", "seeds: [1]"), ("  ce: {options", "  #"))
    command = [sys.executable, "-m", "resobj_d2", "study", str(file), "--output", "out"]
    whole = {"cwd": tmp_path, "capture_output": True, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, env=environment, **whole)
    assert first.returncode == 0, first.stdout + first.stderr
    (result,) = read_results(tmp_path / "out" / "results.jsonl")
    assert result.status == "done" and 0 <= result.value <= 100 and result.seconds > 0
    (folder,) = [p for p in (tmp_path / "out" / "runs").iterdir() if p.is_dir()]
    assert (folder / "model_final.pth").is_file() and (folder / "log.txt").is_file()
    # Killed between its end and its line: the training is there, only the result is missing.
    (tmp_path / "out" / "results.jsonl").unlink()
    second = subprocess.run(command, env=environment, **whole)
    assert second.returncode == 0, second.stdout + second.stderr
    (again,) = read_results(tmp_path / "out" / "results.jsonl")
    assert again.results == result.results and again.key == result.key and again.seconds is None
