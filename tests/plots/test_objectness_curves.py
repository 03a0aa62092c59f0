"""Objectness curves: from the lines of metrics.json to a plot."""

import json

import numpy as np
import pytest
from detectron2.utils.events import EventStorage, JSONWriter
from matplotlib.figure import Figure
from PIL import Image

from resobj_d2.plots.objectness_curves import (
    _label_log_axis,
    main,
    plot_objectness_curves,
    read_objectness,
)


def line(iteration, **scalars):
    scalars = {f"objectness/{name.replace('_', '/')}": value for name, value in scalars.items()}
    return json.dumps({"iteration": iteration, "total_loss": 1.0, **scalars}) + "\n"


@pytest.fixture
def metrics(tmp_path):
    """A function: text to a run's metrics.json."""

    def write(text, run="run"):
        path = tmp_path / run / "metrics.json"
        path.parent.mkdir()
        path.write_text(text)
        return path

    return write


def count_color(path, color):
    return int((np.asarray(Image.open(path).convert("RGB")) == color).all(axis=2).sum())


def test_scalars_by_kind_and_step(metrics):
    path = metrics(
        line(19, step0_positive=0.1, step1_positive=0.2, step0_negative=0.01, step0_selected=900)
        + line(39, step0_positive=0.3, step1_positive=0.4, step0_negative=0.02, step0_selected=800)
    )
    assert read_objectness(path) == {
        "positive": {0: [(19, 0.1), (39, 0.3)], 1: [(19, 0.2), (39, 0.4)]},
        "negative": {0: [(19, 0.01), (39, 0.02)]},
        "selected": {0: [(19, 900), (39, 800)]},
    }
    assert read_objectness(path.parent) == read_objectness(path)


def test_evaluations_are_apart_and_dashed(metrics, tmp_path):
    evaluated = json.dumps({"iteration": 39, "validation/objectness/step1/positive": 0.9}) + "\n"
    path = metrics(line(19, step1_positive=0.2) + line(39, step1_positive=0.3) + evaluated)
    assert read_objectness(path) == {"positive": {1: [(19, 0.2), (39, 0.3)]}}
    assert read_objectness(path, validation=True) == {"positive": {1: [(39, 0.9)]}}
    assert plot_objectness_curves(path, tmp_path / "both.svg")
    plain = metrics(line(19, step1_positive=0.2) + line(39, step1_positive=0.3), run="plain")
    assert plot_objectness_curves(plain, tmp_path / "plain.svg")
    text = '{"iteration": 19, "validation/objectness/step0/positive": 0.5}\n'
    only = metrics(text, run="only")
    assert plot_objectness_curves(only, tmp_path / "only.svg")
    dashes = [(tmp_path / f"{x}.svg").read_text().count("dasharray: ") for x in ("both", "plain")]
    assert dashes[0] > dashes[1]


@pytest.mark.parametrize(
    "other",
    [
        "5", "null", "[{}]", "[" * 50_000, '{"iteration": ' + "[" * 50_000, '{"iteration": "x"}\n',
        '{"iteration": 1e999}\n', '{"iteration": 1, "objectness/step0/positive": {}}\n',
        "\x00" * 99,
        '{"iteration": 1, "objectness/step0/positive": "y"}\n', '{"iteration": 1, "objectness/step',
    ],
)  # fmt: skip
def test_what_is_no_line_of_scalars_is_left_out(metrics, other):
    path = metrics(line(19, step0_positive=0.1) + other)
    path.write_bytes(path.read_bytes() + b"\xff\xfe\x80\n")
    assert read_objectness(path) == {"positive": {0: [(19, 0.1)]}}


def test_lines_written_after_a_resume_win(metrics):
    # Killed after iteration 59, resumed from a checkpoint at 30 with a different writing period.
    path = metrics(
        "".join(line(i, step0_positive=0.1) for i in (19, 39, 59))
        + "".join(line(i, step0_positive=0.2) for i in (35, 45))
    )
    assert read_objectness(path)["positive"][0] == [(19, 0.1), (35, 0.2), (45, 0.2)]


@pytest.mark.parametrize("length", range(1, 60, 7))
def test_truncated_line_is_skipped(metrics, length):
    broken = line(59, step0_positive=0.3)[:length]
    text = line(19, step0_positive=0.1) + broken
    assert read_objectness(metrics(text))["positive"][0] == [(19, 0.1)]
    # The resumed run appends to the broken line, since it has no line end.
    resumed = metrics(text + line(39, step0_positive=0.2), run="resumed")
    assert read_objectness(resumed)["positive"][0] == [(19, 0.1), (39, 0.2)]


def test_reads_what_detectron2_writes(tmp_path):
    path = tmp_path / "metrics.json"
    for start, value in ((0, 0.1), (2, 0.2)):  # the second run resumes at iteration 2
        writer = JSONWriter(str(path))
        with EventStorage(start) as storage:
            for _ in range(4):
                storage.put_scalar("objectness/step1/negative", value, smoothing_hint=False)
                storage.put_scalar("loss", 3.0)
                writer.write()
                storage.step()
        writer.close()
    expected = [(0, 0.1), (1, 0.1), (2, 0.2), (3, 0.2), (4, 0.2), (5, 0.2)]
    assert read_objectness(path) == {"negative": {1: expected}}


def test_plot_shows_every_step(metrics, tmp_path):
    path = metrics(
        "".join(
            line(i, step0_positive=0.1, step1_positive=0.5, step0_negative=0.01, step1_negative=0.1)
            for i in range(19, 200, 20)
        )
    )
    output = tmp_path / "pictures" / "curves.png"
    assert plot_objectness_curves(path, output, title="a run") is True
    assert count_color(output, (0x9A, 0xA0, 0xA6)) > 100  # the base
    assert count_color(output, (0xE6, 0x9F, 0x00)) > 100  # step 1
    assert count_color(output, (0x00, 0x72, 0xB2)) == 0  # there is no step 2


def test_runs_are_plotted_below_each_other(metrics, tmp_path):
    one = metrics(line(19, step0_positive=0.1) + line(39, step0_positive=0.1), run="one")
    two = metrics(line(19, step0_positive=0.9) + line(39, step0_positive=0.9), run="two")
    plot_objectness_curves([one], tmp_path / "one.png")
    plot_objectness_curves([one, two.parent], tmp_path / "both.png")
    sizes = [Image.open(tmp_path / name).size for name in ("one.png", "both.png")]
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] > 1.7 * sizes[0][1]


def test_long_runs_are_thinned_to_means(metrics, tmp_path):
    # A zigzag around .5 becomes a thin line as means of consecutive values.
    text = "".join(line(i, step0_positive=0.2 + 0.6 * (i % 2)) for i in range(1200))
    plot_objectness_curves(metrics(text), tmp_path / "long.png")
    short = "".join(line(i, step0_positive=0.5) for i in range(300))
    plot_objectness_curves(metrics(short, run="short"), tmp_path / "short.png")
    gray = (0x9A, 0xA0, 0xA6)
    counts = [count_color(tmp_path / f"{name}.png", gray) for name in ("long", "short")]
    assert counts[0] < 1.5 * counts[1]


@pytest.mark.parametrize("low, high", [(0.011, 0.019), (0.009, 0.017), (1e-4, 0.5)])
def test_logarithmic_axes_have_several_labels(low, high):
    axis = Figure().subplots()
    axis.plot([0, 1], [low, high])
    axis.set_yscale("log")
    _label_log_axis(axis)
    bottom, top = axis.get_ylim()
    shown = [tick for tick in axis.get_yticks() if bottom <= tick <= top]
    assert len(shown) >= 3
    assert all(float(axis.yaxis.get_major_formatter()(t, 0)) == pytest.approx(t) for t in shown)


def test_nothing_to_plot(metrics, tmp_path):
    path = metrics(line(19))
    output = tmp_path / "curves.png"
    assert plot_objectness_curves(path, output) is False
    assert not output.exists()


def test_command(metrics, tmp_path, capsys, caplog):
    run = metrics(line(19, step0_positive=0.1)).parent
    other = metrics(line(19), run="focal").parent
    output = tmp_path / "curves.png"
    assert main([str(run), str(other), "--output", str(output)]) == 0
    assert "no objectness in focal: left out of the plot" in caplog.text
    assert str(output) in capsys.readouterr().out and output.stat().st_size > 1000
    assert main([str(other), "--output", str(output)]) == 1
    assert "OBJECTNESS.ENABLED" in capsys.readouterr().err
    assert main([str(tmp_path / "absent"), "--output", str(output)]) == 2
    assert str(tmp_path / "absent") in capsys.readouterr().err


def test_any_name_of_a_run_and_title_can_be_plotted(metrics, tmp_path):
    text = line(19, step0_positive=0.1)
    runs = [metrics(text, r"a$\x$b"), metrics(text, "$")]
    assert plot_objectness_curves(runs, tmp_path / "out.png", title=r"$\y$")
