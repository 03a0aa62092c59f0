"""What a script or notebook that trains sees, with and without a set-up of its own."""

import logging
import re


def test_trainer_logs_as_a_command_does_where_nobody_has_set_up_logging(
    scenes_trainer, tmp_path, capsys
):
    trainer = scenes_trainer("out", "SOLVER.MAX_ITER", 1)
    trainer.resume_or_load(resume=False)
    trainer.train()
    shown = capsys.readouterr().out
    assert re.search(r"training data +tiny_train: 15 images", shown) and "1/1  loss" in shown
    assert "arning" not in shown
    assert "ModuleDict" not in shown  # Detectron2's own set-up prints the model
    assert "Starting training from iteration 0" in (tmp_path / "out" / "log.txt").read_text()
    whole = (tmp_path / "out" / "log.txt").read_text()
    assert "ModuleDict" in whole  # said before the folder was taken
    scenes_trainer("second", "SOLVER.MAX_ITER", 1).train()
    assert (tmp_path / "out" / "log.txt").read_text() == whole
    assert "Starting training from" in (tmp_path / "second" / "log.txt").read_text()


def test_trainer_keeps_to_the_logging_of_the_script(scenes_trainer, tmp_path, capsys):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    for name in ("detectron2", "resobj_d2"):
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(handler)
    scenes_trainer("out", "SOLVER.MAX_ITER", 1)
    assert any(record.name.startswith("detectron2.") for record in records)
    assert not capsys.readouterr().out and not (tmp_path / "out" / "log.txt").exists()
