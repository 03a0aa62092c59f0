"""The page as HTML: one file with style, script, plots and pictures in it, and no network.

Names of classes, files and runs are of others: Jinja2 escapes everything that is not marked as made
here, and the page's own policy lets no other script run and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from resobj_d2 import __version__
from resobj_d2.analysis.errors import KINDS
from resobj_d2.analysis.thresholds import shown_score
from resobj_d2.process import counted

from .blocks import Plot, Section
from .judge import Judgement
from .pictures import IGNORED, RIGHT, Picture, choose_images, load_pictures, with_boxes
from .sections import sections_of
from .summary import Summary, summarise

__all__ = ["render", "render_sections"]

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent / "page"
_MOST_BYTES = 15 * 10**6  # of the page
_PICTURE_BYTES = 10 * 10**6
_RESERVE = 5 * 10**5  # for names, markup of the pictures, and escaped characters
_STRIPS = 3
_KIND_NAMES = {
    "Cls": "wrong class",
    "Loc": "loose box",
    "Both": "loose box, wrong class",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


def render(judgements: Sequence[Judgement], *, pictures: int = 24, title: str = "") -> str:
    """The whole page, of less than 15 MB.

    Args:
        judgements: of the runs, on the same images.
        pictures: how many to show, at most.
        title: by default the names of the runs.

    Raises:
        ValueError: so many runs or classes that the page would be larger without any picture.
    """
    data = judgements[0].data
    names = [one.subject.name for one in judgements]
    content = {
        "title": title or ", ".join(names),
        "subtitle": f"{counted(len(data.image_ids), 'image')}, "
        f"{counted(int((~data.objects.ignored).sum()), 'object')}, {_classes(data.class_names)}",
        "summaries": [summarise(one) for one in judgements],
        "sections": sections_of(judgements),
        "runs": names,
        "class_names": data.class_names,
        "threshold": f"{judgements[0].slider_start:.2f}",
        "steps_text": "The same network and boxes, scored with the objectness after each "
        "residual. The score limit above applies here too: false detections should go, and right "
        "ones stay.",
    }
    left = _MOST_BYTES - _size(_fill(**content)) - _size(_json(judgements, [])) - _RESERVE
    if left < 0:
        raise ValueError(
            f"a report on {len(names)} runs with {len(data.class_names)} classes does not fit into "
            f"{_MOST_BYTES // 10**6} MB: report fewer runs at a time"
        )
    images = choose_images(judgements, pictures)
    shown = load_pictures(judgements, images, max_bytes=min(_PICTURE_BYTES, 3 * left // 4))
    left -= sum(len(picture.source) for picture in shown)
    unread = _unread_text(shown)
    if unread:
        logger.warning("%s", unread)
    while True:
        drawn, left_out = with_boxes(judgements, images[: len(shown)], shown, max_bytes=left)
        texts = [
            _pictures_text(len(shown), len(images), len(data.image_ids)),
            _start_text(judgements),
            unread,
            left_out,
        ]
        page = _fill(
            **content,
            pictures=drawn,
            pictures_text=" ".join(filter(None, texts)),
            strips=_strips(judgements, drawn),
            data=_json(judgements, drawn),
        )
        if _size(page) <= _MOST_BYTES or not shown:
            return page
        shown = shown[: len(shown) // 2]  # the fewest boxes of so many runs are still too many


def _size(text: str) -> int:
    return len(text.encode())


def render_sections(
    *, title: str, subtitle: str, summaries: Sequence[Summary], sections: Sequence[Section]
) -> str:
    """A page without pictures, of what is no single detector's.

    Args:
        title, subtitle: at the top.
        summaries: the first thing that is read.
        sections: below them.
    """
    return _fill(title=title, subtitle=subtitle, summaries=summaries, sections=sections)


def _fill(*, sections: Sequence[Section], **content: object) -> str:
    script = (_FOLDER / "report.js").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True)
    environment.filters["code"] = _with_code
    return environment.get_template("report.html").render(
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sections=[_with_markup(section) for section in sections],
        footer=f"Made by resobj_d2 {__version__}. This file needs no network.",
        **content,
    )


def _classes(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{counted(len(names), 'class')}: {shown}"


def _with_code(text: str) -> Markup:
    """A sentence in which what stands between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _pictures_text(shown: int, chosen: int, total: int) -> str:
    """Which pictures there are.

    Args:
        shown: on the page, the first of the chosen ones.
        chosen: by :func:`choose_images`.
        total: of the dataset.
    """
    worst = min(shown, chosen - chosen // 4)
    text = f"The {worst} of {counted(total, 'picture')} whose errors cost most AP"
    if shown == total:
        text = "All pictures, those that cost most AP first"
    elif shown > worst:
        text += f", then {shown - worst} spread over the others"
    if shown < chosen:
        text += f"; {chosen - shown} more did not fit into this file"
    return f"{text}. Choose one to enlarge it."


def _unread_text(shown: Sequence[Picture]) -> str:
    """How many pictures cannot be read, where, and why; "" for none."""
    bad = [picture for picture in shown if picture.problem]
    if not bad:
        return ""
    folders = sorted({str(Path(picture.path).absolute().parent) for picture in bad})
    more = f" and {counted(len(folders) - 1, 'other folder')}" if len(folders) > 1 else ""
    return (
        f"{len(bad)} of the {counted(len(shown), 'picture')} shown cannot be read from "
        f"{folders[0]}{more}, the first: {Path(bad[0].path).name}: {bad[0].problem}. With "
        "`--data`, `--images` names their folder."
    )


def _start_text(judgements: Sequence[Judgement]) -> str:
    """Where the slider stands at first."""
    first = judgements[0]
    if first.limit is None:
        return ""
    whose = f" of {first.subject.name}" if len(judgements) > 1 else ""
    start, exact = f"{first.slider_start:.2f}", shown_score(first.limit.score)
    if start == exact:
        return f"The slider starts at {start}, the best score limit{whose}."
    return f"The slider starts at {start}: the best score limit{whose}, {exact}, rounded down."


def _strips(judgements: Sequence[Judgement], shown: Sequence[Picture]) -> list[dict]:
    """Some pictures at every step, of each run with refinements."""
    strips = []
    for run, one in enumerate(judgements):
        if len(one.errors) < 2:
            continue
        readable = [k for k, picture in enumerate(shown) if picture.source]
        for k in readable[:_STRIPS]:
            picture = shown[k]
            strips.append(
                {
                    "run": run,
                    "picture": k,
                    "name": picture.name,
                    "width": picture.width,
                    "height": picture.height,
                    "steps": list(range(len(one.errors))),
                }
            )
    return strips


def _with_markup(section: Section) -> Section:
    """Plots are made here, so their markup stays."""
    blocks = [
        replace(block, svg=Markup(block.svg)) if isinstance(block, Plot) else block
        for block in section.blocks
    ]
    return replace(section, blocks=blocks)


def _json(judgements: Sequence[Judgement], shown: Sequence[Picture]) -> Markup:
    """What the script reads, as text that cannot end its element."""
    data = judgements[0].data
    content = {
        "images": len(data.image_ids),
        "classes": data.class_names,
        "right": RIGHT,
        "ignored": IGNORED,
        "kinds": [*(_KIND_NAMES[kind] for kind in KINDS), "right", "not judged"],
        "runs": [
            {
                "steps": len(one.errors),
                "curves": [
                    {
                        "right": counts.right[::-1].tolist(),
                        "wrong": counts.wrong[::-1].tolist(),
                        "objects": counts.objects,
                    }
                    for counts in one.counts
                ],
            }
            for one in judgements
        ],
        "pictures": [picture.boxes for picture in shown],
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
