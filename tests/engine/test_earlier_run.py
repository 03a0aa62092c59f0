import json
from argparse import Namespace

import pytest

from resobj_d2.cli.train import main
from resobj_d2.engine import run_setup
from resobj_d2.engine.earlier_run import refuse_earlier_run


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["model_final.pth", "model_0000019.pth"])
def test_a_folder_with_checkpoints_is_refused_in_one_line(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(FileExistsError) as caught:
        refuse_earlier_run(str(tmp_path), how_to_resume="add --resume")
    assert str(caught.value) == (
        f"OUTPUT_DIR {tmp_path} has {name} of an earlier run, which a new one would overwrite: add "
        "--resume to go on with it; to start anew set another OUTPUT_DIR or remove the folder"
    )


@pytest.mark.parametrize("name", ["model_best.pth", "model_imagenet.pth", "log.txt", "model.txt"])
def test_other_files_are_no_obstacle(tmp_path, name):
    refuse_earlier_run(str(tmp_path / "missing"), how_to_resume="")
    (tmp_path / name).touch()
    refuse_earlier_run(str(tmp_path), how_to_resume="")


def test_the_command_refuses_before_it_writes_anything(tmp_path, train_arguments, clean_catalogs):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model_0000019.pth").write_bytes(b"of the first run")
    (out / "metrics.json").write_text("{}\n")
    before = contents(out)
    with pytest.raises(FileExistsError, match="model_0000019.pth of an earlier run.*--resume"):
        main(train_arguments(tmp_path, out))
    assert contents(out) == before


def test_setup_lets_through_what_goes_on_or_only_evaluates(tmp_path, monkeypatch):
    from resobj_d2.config import load_config

    (tmp_path / "model_final.pth").touch()
    cfg = load_config("", ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"], training=False)
    monkeypatch.setattr("resobj_d2.engine.startup.log_to_folder", lambda *a, **k: None)
    run_setup(cfg, Namespace(eval_only=True, resume=False))
    run_setup(cfg, Namespace(eval_only=False, resume=True))
    with pytest.raises(FileExistsError):
        run_setup(cfg, Namespace(eval_only=False, resume=False))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun --max-restarts
    run_setup(cfg, Namespace(eval_only=False, resume=False))


def test_a_trainer_from_python_refuses_too(scenes_trainer, tmp_path):
    scenes_trainer("out", "SOLVER.MAX_ITER", 2).train()
    before = contents(tmp_path / "out")
    for loads in (True, False):
        trainer = scenes_trainer("out", "SOLVER.MAX_ITER", 3)
        if loads:
            trainer.resume_or_load(resume=False)
        with pytest.raises(FileExistsError, match=r"resume_or_load\(resume=True\) before trainer"):
            trainer.train()
    after = contents(tmp_path / "out")
    after = {n: x for n, x in after.items() if n in before}
    assert after == before
    trainer = scenes_trainer("out", "SOLVER.MAX_ITER", 3)
    trainer.resume_or_load(resume=True)
    trainer.train()
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines][-1] == 2
