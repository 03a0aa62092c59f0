"""Yaml is read as data; what would be lost without a word is refused."""

import pytest

from resobj_d2.process.yaml_text import YamlError, parse_yaml


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("SOLVER:\n  BASE_LR: 1\nSOLVER:\n  MAX_ITER: 3\n", "SOLVER", "1 and 3"),
        ("SOLVER:\n  BASE_LR: 0.1\n  BASE_LR: 0.7\n", "BASE_LR", "2 and 3"),
        ("a: [{b: 1, 'b': 2}]", "b", "1 and 1"),
        ("names: {0: cat, 0: dog}", "0", "1 and 1"),
    ],
)
@pytest.mark.parametrize("strings", [False, True])
def test_a_key_twice_is_refused_with_both_lines(text, key, lines, strings):
    with pytest.raises(YamlError, match=f"f.yaml: the key '{key}' occurs twice, in lines {lines}"):
        parse_yaml(text, "f.yaml", strings=strings)


def test_equal_keys_of_different_nodes_and_kinds_are_read():
    assert parse_yaml("a: {b: 1}\nc: {b: 2}", "f") == {"a": {"b": 1}, "c": {"b": 2}}
    assert parse_yaml("{1: a, '1': b}", "f") == {1: "a", "1": "b"}
    assert parse_yaml("x: &x {a: 1}\ny: {<<: *x, a: 2}", "f")["y"] == {"a": 2}
