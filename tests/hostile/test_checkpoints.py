"""No file of weights runs code, hangs or takes much memory, whatever is in it."""

import os
import pickle
import time
import zipfile

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.cli.dispatch import main


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def compressed(path):
    """Many zeros in a small file."""
    torch.save({"model": {"weight": torch.zeros(4)}}, "plain.pth")
    with (
        zipfile.ZipFile("plain.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            if entry.filename.endswith("/data/0"):
                with bomb.open(entry.filename, "w") as file:
                    for _ in range(4):
                        file.write(bytes(2**24))
            else:
                bomb.writestr(entry.filename, plain.read(entry))


def sparse(path):
    with open(path, "wb") as file:
        file.write(np.array([0, 2, 0, 0, 0], dtype="<i4").tobytes())
        file.truncate(2**38)


def write(data):
    def to(path):
        with open(path, "wb") as file:
            file.write(data)

    return to


def saved(content, **options):
    return lambda path: torch.save(content, path, **options)


FILES = {
    "objects.pth": saved({"model": {"weight": Harm()}}),
    "objects_of_old.pth": saved({"model": Harm()}, _use_new_zipfile_serialization=False),
    "pickle.pth": write(pickle.dumps(Harm(), 2)),
    "pickle.pkl": write(pickle.dumps({"model": {"weight": Harm()}, "__author__": "x"})),
    "pickle.pyth": write(pickle.dumps({"model_state": Harm()}, 2)),
    "whole_model.pth": saved(torch.nn.Linear(2, 2)),
    "compressed.pth": compressed,
    "expanded.pth": saved({"model": {"tower.cls.0.weight": torch.zeros(1).expand(10**12)}}),
    "not_finite.pth": None,
    "list.pth": saved([1, 2]),
    "names_that_are_numbers.pth": saved({"model": {1: torch.zeros(2)}}),
    "weights_that_are_text.pth": saved({"model": {"tower.cls.0.weight": "x"}}),
    "empty.pth": write(b""),
    "text.pth": write(b"MODEL: {}\n"),
    "random.pth": write(bytes(i * i % 251 for i in range(9000))),
    "zip.pth": write(b"PK\x05\x06" + bytes(18)),
    "deep.pkl": write(b"]" * 100_000 + b"."),
    "empty.pkl": write(b""),
    "list.pkl": write(pickle.dumps([1])),
    "names_that_are_numbers.pkl": write(pickle.dumps({1: {2: 3}})),
    "objects_for_arrays.pkl": write(pickle.dumps({"weight": {"a": [None]}})),
    "long_header.safetensors": write(b"\xff" * 8 + b"{}"),
    "empty.safetensors": write(b""),
    "sparse.weights": sparse,
    "short.weights": write(b"\0" * 10),
    "sparse.conv.74": sparse,
}


@pytest.fixture
def config(tiny_cfg, tmp_path, monkeypatch):
    """The working directory, with a picture and a configuration whose model is small."""
    monkeypatch.chdir(tmp_path)
    cfg = tiny_cfg(
        *("INPUT.MIN_SIZE_TEST", "64", "DATASETS.TEST", "()", "DATASETS.TRAIN", "()"),
        *("IMPORTS", "['tests.toy_backbone']"),
    )
    (tmp_path / "config.yaml").write_text(cfg.dump())
    Image.new("RGB", (8, 8)).save("a.png")
    return cfg


@pytest.mark.parametrize("name", FILES)
def test_prediction_refuses_it_in_one_line(name, config, capsys):
    if name == "not_finite.pth":
        model = build_model(config)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        ResObjCheckpointer(model, ".").save("not_finite")
    else:
        FILES[name](name)
    start = time.perf_counter()
    arguments = ["--input", "a.png", "--output", "out", "MODEL.WEIGHTS", name]
    status = main(["predict", "--config-file", "config.yaml", *arguments])
    assert time.perf_counter() - start < 30
    errors = capsys.readouterr().err.splitlines()
    errors = [line for line in errors if not line.startswith(("operators:", "INFO", "WARNING"))]
    assert status == 2 and len(errors) == 1 and errors[0].startswith("error: "), errors
    assert not os.path.exists("harm") and not os.path.exists("out")
