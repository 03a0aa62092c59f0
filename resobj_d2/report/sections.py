"""The pages below the summary, each with its plots, tables and how to read them."""

from __future__ import annotations

from collections.abc import Sequence

from resobj_d2.analysis.confusions import background_name, confusion_table
from resobj_d2.analysis.errors import KINDS
from resobj_d2.analysis.precision import mean_precision
from resobj_d2.analysis.thresholds import shown_score
from resobj_d2.plots.scalars import Scalars, Series, read_scalars, thinned

from . import plots
from .blocks import Code, Note, Plot, Section, Table, left_out, named
from .comparison_section import comparison_section
from .imbalance_sections import imbalance_section
from .judge import Judgement
from .score_sections import calibration_section, misalignment_section, precision_section

__all__ = ["sections_of", "training_panels"]

_MOST_POINTS = 400  # of a curve
_POINTS = 20_000  # of all curves of trainings, unless that leaves less than 50 for one


def sections_of(judgements: Sequence[Judgement]) -> list[Section]:
    """All pages that there is something to show on."""
    found = [
        comparison_section(judgements),
        _errors(judgements),
        precision_section(judgements),
        calibration_section(judgements),
        _classes(judgements),
        _groups(judgements),
        misalignment_section(judgements),
        _steps(judgements),
        imbalance_section(judgements),
        _training(judgements),
        _about(judgements),
    ]
    return [section for section in found if section is not None and section.blocks]


def _errors(judgements: Sequence[Judgement]) -> Section:
    costs = {
        one.subject.name: {
            str(row["error"]): row["dAP"] for row in one.last.table() if row["error"] in KINDS
        }
        for one in judgements
    }
    blocks: list = []
    if any(value is not None for row in costs.values() for value in row.values()):
        blocks.append(
            Plot(
                svg=plots.bars(costs, label="points of AP50 that correcting it alone would give"),
                alt="Cost of each kind of error in points of AP50",
                caption="The longest bar is what to work on first. Cls: right place, wrong class. "
                "Loc: right class, IoU of .1 to .5. Both: both of these. Dupe: a second detection "
                "of a found object. Bkg: no object within IoU .1. Miss: objects that nothing is "
                "near. The bars do not add up to what is missing to 100, since a correction also "
                "changes what the others cost.",
            )
        )
    for one in judgements:
        blocks += named(one.subject.name, len(judgements))
        table = [{k: v for k, v in row.items()} for row in one.last.table()]
        blocks.append(Table(rows=table, caption="Errors at IoU .50 (dAP in points)", digits=2))
        confidence = one.best_score
        pairs = confusion_table(one.data, confidence=confidence)
        mixed = [
            row
            for row in pairs
            if row["object"] != row["detection"]
            and background_name(one.data) not in (row["object"], row["detection"])
        ]
        if mixed:
            title = f"What is taken for what, at scores of {shown_score(confidence)} or more"
            blocks.append(Table(rows=mixed, caption=title, limit=15))
    return Section(
        key="errors",
        short="Errors",
        title="What it loses by",
        text="After TIDE (Bolya et al., ECCV 2020): every wrong detection has one kind of error, "
        "and its cost is the AP that would be gained if this kind alone did not happen.",
        blocks=blocks,
    )


def _classes(judgements: Sequence[Judgement]) -> Section | None:
    names = judgements[0].data.class_names
    if len(names) < 2:
        return None
    averages = {one.subject.name: one.groups("class") for one in judgements}
    first = averages[judgements[0].subject.name]
    order = sorted(names, key=lambda name: -1 if first[name] is None else first[name])
    positives = dict(zip(names, judgements[0].data.positives().tolist(), strict=True))
    rows = [
        {
            "class": name,
            "objects": positives[name],
            **{
                ("AP" if len(averages) == 1 else f"AP, {run}"): values[name]
                for run, values in averages.items()
            },
        }
        for name in order
    ]
    shown = order[:30]
    return Section(
        key="classes",
        short="Classes",
        title="By class",
        text="Worst first. A class with few objects has an AP that says little.",
        blocks=[
            Plot(
                svg=plots.bars(
                    {run: {n: values[n] for n in shown} for run, values in averages.items()},
                    label="AP",
                ),
                alt="AP of each class, worst first",
                caption="AP over IoU .50 to .95."
                + (f" The {len(shown)} worst of {len(order)}." if len(order) > 30 else ""),
            ),
            Table(rows=rows, caption="AP by class", limit=100),
        ],
    )


def _groups(judgements: Sequence[Judgement]) -> Section | None:
    titles = {
        "size": (
            "AP by size",
            "Small is below 32 x 32 pixels, large above 96 x 96. In brackets: objects.",
        ),
        "shape": ("AP by shape", "Tall is more than twice as high as wide, and wide the reverse."),
        "objects in the image": ("AP by crowding", "By the number of objects in the picture."),
    }
    blocks: list = []
    for by, (title, text) in titles.items():
        objects = judgements[0].groups(by, "objects")
        values = {
            one.subject.name: {f"{k} ({objects[k]})": v for k, v in one.groups(by).items()}
            for one in judgements
        }
        if any(value is not None for row in values.values() for value in row.values()):
            blocks.append(Plot(svg=plots.bars(values, label="AP"), alt=title, caption=text))
    overlap = {}
    for one in judgements:
        points = [(float(k), v) for k, v in one.groups("IoU").items() if v is not None]
        if points:
            overlap[one.subject.name] = tuple(zip(*points, strict=True))
    if overlap:
        blocks.append(
            Plot(
                svg=plots.curves(
                    overlap, x_label="IoU that counts as right", y_label="AP", height=2.6
                ),
                alt="AP over the IoU threshold",
                caption="A steep fall to the right means boxes that are found but not tight.",
            )
        )
    return Section(
        key="groups",
        short="Sizes",
        title="By size, shape and crowding",
        text="Where AP is low, look for what these objects lack: pixels (a larger input, finer "
        "pyramid levels), anchors of their shape, or room between them (NMS).",
        blocks=blocks,
    )


def _steps(judgements: Sequence[Judgement]) -> Section | None:
    refined = [one for one in judgements if len(one.errors) > 1]
    blocks: list = []
    for one in refined:
        rows = []
        for step, (errors, limit) in enumerate(zip(one.errors, one.limits, strict=True)):
            costs = {str(row["error"]): row["dAP"] for row in errors.table()}
            rows.append(
                {
                    "step": f"{step} (base)" if step == 0 else str(step),
                    "AP50": mean_precision(errors.precision),
                    "best F1": limit and 100 * limit.f1,
                    "at score": shown_score(limit and limit.score),
                    "detections": int((~errors.matches.ignored).sum()),
                    "dAP of Bkg": costs["Bkg"],
                    "dAP of Miss": costs["Miss"],
                }
            )
        blocks += named(one.subject.name, len(judgements))
        blocks.append(Table(rows=rows, caption="Scored with the objectness of each step", digits=2))
    without = [one.subject.name for one in judgements if len(one.errors) < 2]
    blocks += left_out(without, "no residual steps are known", blocks)
    return Section(
        key="refinement",
        short="Objectness",
        title="What the residual steps change",
        text="The same network and boxes, scored with the objectness after 0, 1, ... residuals "
        "(Residual Objectness, Figure 5).",
        blocks=blocks,
    )


def _training(judgements: Sequence[Judgement]) -> Section | None:
    known = {
        one.subject.name: read_scalars(one.subject.folder) if one.subject.folder else {}
        for one in judgements
    }
    number = sum(len(x) for run in known.values() for x in training_panels(run).values())
    most = max(50, min(_MOST_POINTS, _POINTS // max(1, number)))
    blocks: list = []
    for name, scalars in known.items():
        panels = training_panels(scalars, most=most)
        if not panels:
            continue
        blocks += named(name, len(judgements))
        blocks += [
            Plot(
                svg=plots.curves(series, x_label="iteration", y_label="", height=2.6),
                alt=title,
                caption="",
            )
            for title, series in panels.items()
        ]
        text = (
            "Losses should fall and AP rise until the end: an AP that falls while the loss goes on "
            "falling is overfitting; both still moving at the end asks for a longer training."
        )
        if max(map(len, scalars.values())) > most:
            text += f" A curve has {most} points at most, means of consecutive values."
        blocks.append(Note(text=text))
    without = [name for name, scalars in known.items() if not training_panels(scalars)]
    blocks += left_out(without, "there is no metrics.json with scalars of a training", blocks)
    return Section(key="training", short="Training", title="The training", blocks=blocks)


def training_panels(scalars: Scalars, *, most: int = _MOST_POINTS) -> dict[str, dict]:
    """The scalars of a training that a person looks at, by panel.

    Args:
        scalars: of a run.
        most: points of a curve.
    """
    groups = {
        "loss, all terms": [n for n in scalars if n == "total_loss"],
        "terms of the loss": [n for n in scalars if n.startswith("loss_")],
        # One evaluation at the end is no curve.
        "AP": [n for n in ("bbox/AP", "bbox/AP50", "bbox/AP75") if len(scalars.get(n, ())) > 1],
        "validation loss": [n for n in scalars if n == "validation/total_loss"],
        "mean objectness of positives": [
            n for n in scalars if n.startswith("objectness/") and n.endswith("/positive")
        ],
        "mean objectness of negatives": [
            n for n in scalars if n.startswith("objectness/") and n.endswith("/negative")
        ],
        "learning rate": [n for n in scalars if n == "lr"],
    }
    return {
        title: {_short(name): _columns(thinned(scalars[name], most)) for name in sorted(names)}
        for title, names in groups.items()
        if names
    }


def _short(name: str) -> str:
    """A scalar's name in the legend of its panel."""
    if name.startswith("objectness/step"):
        return "step " + name.removeprefix("objectness/step").partition("/")[0]
    return name.removeprefix("bbox/").removeprefix("loss_")


def _columns(series: Series) -> tuple[list[int], list[float]]:
    return [iteration for iteration, _ in series], [value for _, value in series]


def _about(judgements: Sequence[Judgement]) -> Section:
    blocks: list = []
    for one in judgements:
        data, about = one.data, one.subject.about
        rows = [
            ("images", len(data.image_ids)),
            ("objects to find", int((~data.objects.ignored).sum())),
            ("ignored objects and crowd regions", int(data.objects.ignored.sum())),
            ("detections", len(data.detections)),
            *((key, about[key]) for key in ("dataset", "weights", "detections") if about.get(key)),
        ]
        blocks += named(one.subject.name, len(judgements))
        table = [{"what": what, "value": str(value)} for what, value in rows]
        blocks.append(Table(rows=table, caption="Data and detector"))
        if about.get("config"):
            blocks.append(Code(caption="Configuration", text=str(about["config"])))
    return Section(key="about", short="About", title="What was measured", blocks=blocks)
