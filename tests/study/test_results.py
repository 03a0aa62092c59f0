"""The file of results: whole lines, checked keys, merged from several machines."""

import json
from dataclasses import replace

import pytest

from resobj_d2.study.fingerprint import key_of
from resobj_d2.study.plan import StudyError
from resobj_d2.study.results import Result, append_result, by_key, read_results


def result(seed=1, value=40.0, **changes):
    decides = {"config": {"SOLVER": {"MAX_ITER": 3}}, "seed": seed}
    whole = Result(
        key=key_of(decides), study="s", dataset="d", method="m", seed=seed, status="done",
        metric="bbox/AP", decides=decides, results={"bbox/AP": value}, curve=[[2, value]],
        finished="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return replace(whole, **changes)


def test_what_is_appended_is_read(tmp_path):
    file = tmp_path / "results.jsonl"
    assert read_results(file) == []
    for one in (result(1), result(2)):
        append_result(file, one)
    assert read_results(file) == [result(1), result(2)]
    assert result(1).value == 40.0


def test_half_a_line_of_a_killed_process_is_left_out_and_replaced(tmp_path, caplog):
    file = tmp_path / "results.jsonl"
    append_result(file, result(1))
    whole = file.read_bytes()
    append_result(file, result(2))
    for length in (1, 40, len(file.read_bytes()) - len(whole) - 1):
        file.write_bytes(whole + json.dumps({"x": "y" * 5000}).encode()[:length])
        assert read_results(file) == [result(1)]
        append_result(file, result(3))
        assert read_results(file) == [result(1), result(3)]


def test_done_beats_failed_and_later_beats_earlier():
    failed = result(status="failed", results={}, error="no memory", finished="2026-03-03T00:00:00Z")
    later = result(value=41.0, finished="2026-02-02T00:00:00Z")
    for order in ([failed, result(), later], [later, failed, result()]):
        assert list(by_key(order).values()) == [later]
    assert by_key([result(1), result(2)]).keys() == {result(1).key, result(2).key}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda line: line.replace('"MAX_ITER": 3', '"MAX_ITER": 4'), "the key does not belong"),
        (lambda line: "{", "this is no json"),
        (lambda line: "[1]", "not a result of a study"),
        (lambda line: '{"key": "x"}', "not a result of a study"),
        (lambda line: line.replace('"seed": 1, "status"', '"seed": "1", "status"'), "seed is '1'"),
        (lambda line: line.replace('"done"', '"over"'), "status is 'over'"),
        (lambda line: line.replace('"metric": "bbox/AP"', '"metric": "voc/AP"'), "no voc/AP"),
        (
            lambda line: line.replace('"bbox/AP": 40.0', '"bbox/AP": "x"'),
            "a result is not a number",
        ),
        (
            lambda line: line.replace('"bbox/AP": 40.0', '"bbox/AP": NaN'),
            "a result is not a number",
        ),
        (lambda line: line.replace('"bbox/AP": 40.0', '"bbox/AP": true'), "a result is not a num"),
        (lambda line: line.replace("[[2, 40.0]]", '[[2, "x"]]'), "than pairs of numbers"),
        (lambda line: line.replace("[[2, 40.0]]", "[[2, Infinity]]"), "than pairs of numbers"),
        (lambda line: line.replace("[[2, 40.0]]", "[[2]]"), "than pairs of numbers"),
        (lambda line: line.replace("[[2, 40.0]]", "[2]"), "than pairs of numbers"),
    ],
)
def test_a_changed_line_is_refused(tmp_path, change, message):
    file = tmp_path / "results.jsonl"
    append_result(file, result())
    line = file.read_text().strip()
    assert change(line) != line
    file.write_text(change(line) + "\n")
    with pytest.raises(StudyError, match="results.jsonl, line 1") as error:
        read_results(file)
    assert message in str(error.value)
