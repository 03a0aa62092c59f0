"""Configuration files that are broken or meant to do harm. ``HARM`` in them stands for a path."""

from __future__ import annotations

import itertools

HARM = "HARM"


def bomb(kind: str) -> str:
    """A few lines that stand for 10**9 values."""
    lines = ["A0: &a0 {x: 1}" if kind == "mapping" else "A0: &a0 [x]"]
    for i in range(1, 10):
        alias = f"*a{i - 1}"
        if kind == "list":
            value = f"[{', '.join([alias] * 10)}]"
        elif kind == "mapping":
            value = "{" + ", ".join(f"k{j}: {alias}" for j in range(10)) + "}"
        else:  # merged
            value = "{<<: [" + ", ".join([alias] * 10) + f"], y{i}: 1}}"
        lines.append(f"A{i}: &a{i} {value}")
    if kind == "merged":
        lines[0] = "A0: &a0 {x: 1}"
    return "\n".join(lines)


TAGS = [
    f"SEED: !!python/object/apply:os.mkdir [{HARM}]",
    f"SEED: !!python/object/new:os.mkdir [{HARM}]",
    f"SEED: !!python/object/apply:builtins.eval [\"__import__('os').mkdir('{HARM}')\"]",
    "SEED: !!python/name:os.system",
    "SEED: !!python/module:os",
    "SEED: !!python/tuple [1, 2]",
    "SEED: !mine 3",
    "? !!python/object/apply:os.getcwd []\n: 3",
    f"!!python/object/apply:os.mkdir [{HARM}]",
    f"MODEL:\n  DENSE: {{NUM_CLASSES: !!python/object/apply:os.mkdir [{HARM}]}}",
]
TEXTS = {
    "empty": "",
    "a comment": "# nothing\n",
    "null": "null",
    "a list": "- 1\n- 2",
    "a word": "word",
    "two documents": "SEED: 1\n---\nSEED: 2",
    "deep list": "SEED: " + "[" * 1000,
    "deep closed list": "SEED: " + "[" * 1000 + "]" * 1000,
    "deep mapping": "".join(f"{'  ' * i}A:\n" for i in range(300)),
    "deep flow mapping": "{A: " * 400 + "1" + "}" * 400,
    "sixty levels": "{A: " * 60 + "1" + "}" * 60,
    "bomb of lists": bomb("list"),
    "bomb of mappings": bomb("mapping"),
    "bomb of merges": bomb("merged"),
    "an alias of itself": "A: &a [*a]",
    "an alias of itself in a mapping": "A: &a {b: *a}",
    "unknown alias": "A: *b",
    "open quote": "SEED: 'a",
    "a tab": "MODEL:\n\tDENSE: {}",
    "control characters": "SEED: \x01",
    "a number of many digits": "SEED: " + "9" * 10_000,
    "a sexagesimal of many parts": "SEED: " + ":".join(["1"] * 100_000),
    "no date": "SEED: 2020-99-99",
    "large": "\n".join(f"KEY_{i}: {i}" for i in range(9_000)),
    "a long line": "SEED: [" + "1, " * 40_000 + "1]",
    "key that is a number": "1: 2",
    "key that is a list": "[1, 2]: 3",
    "key that is null": "~: 3",
    "keys of a node that are numbers": "MODEL: {1: 2}",
    "unknown key": "MODLE: {}",
    "a number for a node": "MODEL: 5",
    "a list for a node": "MODEL: [1]",
    "null for a node": "MODEL:",
    "a node for a number": "SEED: {A: 1}",
    "a list for a number": "SEED: [1]",
    "a text for a number": "SEED: much",
    "null for a number": "SOLVER: {MAX_ITER: }",
    "infinity": "SOLVER: {BASE_LR: .inf}",
    "a number that is none": "SOLVER: {BASE_LR: .nan}",
    "a date for a text": "OUTPUT_DIR: 2020-01-01",
    "imports a number": "IMPORTS: 5",
    "imports a mapping": "IMPORTS: {a: 1}",
    "imports numbers": "IMPORTS: [1]",
    "imports a path": "IMPORTS: ['../../harm']",
    "imports nothing": "IMPORTS: ['']",
    "imports a text": "IMPORTS: harm",
    "imports what is not there": "IMPORTS: [there_is_no_such_module]",
    "base of itself": "_BASE_: config.yaml",
    "base a number": "_BASE_: 5",
    "base a mapping": "_BASE_: {a: 1}",
    "base null": "_BASE_:",
    "base of null": "_BASE_: [~]",
    "base a folder": "_BASE_: .",
    "base a device": "_BASE_: /dev/zero",
    "base not there": "_BASE_: absent.yaml",
    "base a binary": "_BASE_: /bin/sh",
    "base on the network": "_BASE_: https://127.0.0.1:9/config.yaml",
    "base of another scheme": "_BASE_: file:///etc/passwd",
    "base not in the zoo": "_BASE_: 'resobj_d2://absent.yaml'",
    "base outside of the zoo": "_BASE_: 'resobj_d2://../../../etc/passwd'",
    "base in the key of a node": "MODEL: {_BASE_: config.yaml}",
    "datasets a number": "DATASETS: {REGISTER: 5}",
    "datasets of numbers": "DATASETS: {REGISTER: [5]}",
    "datasets without a format": "DATASETS: {REGISTER: [{name: a}]}",
    "datasets of a format": "DATASETS: {REGISTER: [{name: a, format: [1]}]}",
    "datasets a device": "DATASETS: {REGISTER: [{name: a, json: /dev/zero, images: /}]}",
    "datasets that are numbers": "DATASETS: {TEST: [1], TRAIN: [2]}",
    **{f"tag {i}": text for i, text in enumerate(TAGS)},
    **{f"large base {i}": f"_BASE_: [{', '.join(['other.yaml'] * n)}]" for i, n in [(0, 101)]},
}
# Read without an error where no dataset, no import and no training is needed.
ONLY_WRONG_IN_USE = (
    "infinity", "a number that is none", "datasets of numbers", "datasets without a format",
    "datasets of a format", "datasets a device", "datasets that are numbers",
)  # fmt: skip
BINARY = {
    "zeros": bytes(1000),
    "latin": "SEED: ä".encode("latin1"),
    "utf-16": "SEED: 1".encode("utf-16"),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "random bytes": bytes(i * i % 251 for i in range(5000)),
}
# What leads to several files: name of the configuration and its others.
FAMILIES = {
    "a circle": {
        "config.yaml": "_BASE_: b.yaml", "b.yaml": "_BASE_: c.yaml", "c.yaml": "_BASE_: b.yaml",
    },
    "a tag in a base": {"config.yaml": "_BASE_: b.yaml", "b.yaml": TAGS[0]},
    "bases of bases": {
        f"{name}.yaml": f"_BASE_: [{', '.join([f'{below}.yaml'] * 10)}]"
        for name, below in itertools.pairwise(["config", *"bcdefgh", "end"])
    }
    | {"end.yaml": "SEED: 1"},
    "a key that was a value": {"config.yaml": "_BASE_: b.yaml\nA: {x: 1}", "b.yaml": "A: 3"},
}  # fmt: skip


def all_configs() -> dict[str, dict[str, bytes]]:
    """By name the files of each, of which ``config.yaml`` is the one to load."""
    texts = {name: {"config.yaml": text} for name, text in TEXTS.items()} | FAMILIES
    encoded = {
        name: {file: text.encode() for file, text in files.items()} for name, files in texts.items()
    }
    return encoded | {name: {"config.yaml": data} for name, data in BINARY.items()}
