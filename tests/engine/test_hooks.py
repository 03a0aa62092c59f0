import json
import math

import pytest
import torch
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.events import JSONWriter
from torch import nn

from resobj_d2.engine import NonFiniteLossError, NonFiniteLossGuard, StatisticsHook


class Losses(nn.Module):
    """Returns the losses of a script, one dict per iteration."""

    def __init__(self, script):
        super().__init__()
        self.script = iter(script)
        self.statistics = {}

    def forward(self, batch):
        losses, self.statistics = next(self.script)
        return {k: torch.tensor(v) for k, v in losses.items()}


class Loop(TrainerBase):
    def __init__(self, model, writers=()):
        super().__init__()
        self.model, self.writers = model, writers

    def run_step(self):
        self.model([{"image_id": 42, "image": torch.zeros(3, 2, 2)}, {"file_name": "b.png"}])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_stops_with_term_iteration_and_images(tmp_path, value):
    good = ({"loss_cls": 1.0, "loss_box_reg": 0.5}, {})
    bad = ({"loss_cls": value, "loss_box_reg": 0.5}, {})
    loop = Loop(Losses([good, good, bad]))
    loop.register_hooks([NonFiniteLossGuard(output_dir=str(tmp_path))])
    with pytest.raises(NonFiniteLossError) as error:
        loop.train(0, 5)
    message = str(error.value)
    assert "iteration 2" in message and "loss_cls" in message and "[42, 'b.png']" in message
    assert "loss_box_reg" not in message
    saved = torch.load(tmp_path / "nonfinite_batch_rank0.pth", weights_only=False)
    assert saved["iteration"] == 2 and saved["batch"][0]["image_id"] == 42


def test_guard_leaves_evaluation_alone(tmp_path):
    class EvaluatesWithinTraining(Loop):
        def run_step(self):
            self.model.eval()
            super().run_step()
            self.model.train()
            super().run_step()

    bad, good = ({"loss_cls": math.nan}, {}), ({"loss_cls": 1.0}, {})
    loop = EvaluatesWithinTraining(Losses([bad, good, bad, bad]))
    loop.register_hooks([NonFiniteLossGuard(output_dir=str(tmp_path))])
    loop.train(0, 1)
    assert list(tmp_path.iterdir()) == []
    loop = EvaluatesWithinTraining(loop.model)  # the same loss in training mode
    loop.register_hooks([NonFiniteLossGuard(output_dir=str(tmp_path))])
    with pytest.raises(NonFiniteLossError, match="iteration 0.*loss_cls"):
        loop.train(0, 1)


def test_statistics_are_means_over_the_period_without_missing_values(tmp_path):
    values = [1.0, math.nan, 3.0, 10.0]
    script = [({}, {"a": torch.tensor(v), "b": torch.tensor(7)}) for v in values]
    ended = []
    loop = Loop(Losses(script))
    writer = JSONWriter(str(tmp_path / "metrics.json"))

    class WriteEachIteration(StatisticsHook):
        def after_step(self):
            super().after_step()
            writer.write()

    loop.register_hooks([WriteEachIteration(period=3, on_end=lambda: ended.append(True))])
    loop.train(0, 4)
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    logged = {row["iteration"]: (row.get("a"), row.get("b")) for row in rows}
    assert logged[2] == (2.0, 7.0)  # the mean of 1 and 3; the NaN is left out
    assert logged[3] == (10.0, 7.0)  # what remained at the end
    assert ended == [True]


def test_statistics_of_the_parts_are_logged():
    """An RPN inside GeneralizedRCNN, say, measures something of its own."""
    model = Losses([({}, {"a": torch.tensor(1.0)})] * 2)
    model.part = nn.Module()
    model.part.statistics = {"b": torch.tensor(2.0)}
    loop = Loop(model)
    loop.register_hooks([StatisticsHook(period=2)])
    loop.train(0, 2)
    latest = loop.storage.latest()
    assert {name: value for name, (value, _) in latest.items()} == {"a": 1.0, "b": 2.0}
