"""Checking datasets, alone or against a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.record import Record

from .anchors import AnchorFit, anchor_sets, fit, network_of
from .boxes import ClassCount, box_findings, count_classes
from .findings import LEVELS, Finding, finding, note_findings
from .input_size import input_objects, input_sizes, size_in_words
from .pictures import Contents, picture_findings, read_contents, shared_pictures
from .suggestion import Suggestion, suggest

__all__ = [
    "AnchorReport",
    "DatasetReport",
    "Report",
    "check_anchors",
    "check_datasets",
    "check_record",
    "check_records",
]


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What was seen of a dataset.

    Attributes:
        name: as registered.
        role: "train", "test", "train and test", or "".
        source: file or folder.
        pictures: how many.
        crowd: annotations that are crowd regions.
        input_size: of the network, in words; "" without a network.
        classes: counts, by class number.
        findings: errors first.
    """

    name: str
    role: str
    source: str
    pictures: int
    crowd: int
    input_size: str
    classes: tuple[ClassCount, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class AnchorReport:
    """How the anchors of a configuration fit the training data.

    Attributes:
        fits: of each set of anchors, with suggestions.
        remarks: on what has none.
        findings: classes that the anchors miss.
    """

    fits: tuple[tuple[AnchorFit, tuple[Suggestion, ...]], ...]
    remarks: tuple[str, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything.

    Attributes:
        datasets: one for each dataset.
        across: findings between datasets.
        anchors: None without a configuration.
    """

    datasets: tuple[DatasetReport, ...]
    across: tuple[Finding, ...] = ()
    anchors: AnchorReport | None = None

    @property
    def findings(self) -> list[Finding]:
        """Of all datasets, between them, and of the anchors."""
        anchors = () if self.anchors is None else self.anchors.findings
        return [*(f for one in self.datasets for f in one.findings), *self.across, *anchors]


def check_datasets(roles: Mapping[str, str], *, cfg=None, workers: int = 1) -> Report:
    """Check registered datasets; the arguments are those of :func:`check_records`.

    Raises:
        ValueError, FileNotFoundError: a dataset cannot be read at all.
    """
    records = {name: dataset_record(name) for name in roles}
    return check_records(records, roles, cfg=cfg, workers=workers)


def check_records(
    records: Mapping[str, Record], roles: Mapping[str, str], *, cfg=None, workers: int = 1
) -> Report:
    """Check datasets and what they have to do with each other.

    Args:
        records: by name, in the order of the report.
        roles: name to "train", "test", "train and test" or "".
        cfg: a configuration whose input sizes and anchors are compared; None for none.
        workers: threads that open pictures.

    Raises:
        ValueError: the anchors' keys do not fit each other, or the network.
    """
    contents, reports = {}, []
    for name, record in records.items():
        contents[name] = read_contents(record.images, workers=workers, label=name)
        reports.append(check_record(record, contents[name], role=roles[name], cfg=cfg))
    train = [record for name, record in records.items() if "train" in roles[name]]
    return Report(
        datasets=tuple(reports),
        across=tuple(_across(roles, records, contents)),
        anchors=None if cfg is None else check_anchors(cfg, train),
    )


def check_record(record: Record, contents: Contents, *, role: str = "", cfg=None) -> DatasetReport:
    """Check one dataset, whose pictures were read.

    Args:
        record: the dataset.
        contents: of its pictures.
        role: see :class:`DatasetReport`.
        cfg: as in :func:`check_records`.
    """
    images = record.images
    scales, words = None, ""
    if cfg is not None:
        sizes = input_sizes(cfg, images.widths, images.heights, is_train=role != "test")
        scales = sizes[:, ::-1] / np.stack([images.widths, images.heights], axis=1)
        words = size_in_words(sizes)
    found = [
        *picture_findings(record, contents),
        *note_findings(record.notes),
        *box_findings(record, scales),
    ]
    return DatasetReport(
        name=record.name,
        role=role,
        source=record.source,
        pictures=len(images),
        crowd=int(record.annotations.crowd.sum()),
        input_size=words,
        classes=tuple(count_classes(record, scales)),
        findings=tuple(_by_level(found)),
    )


def _by_level(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda one: LEVELS.index(one.level))


def _across(
    roles: Mapping[str, str], records: Mapping[str, Record], contents: Mapping[str, Contents]
) -> list[Finding]:
    """Pictures that several datasets share, and classes that only a test set has."""
    found = []
    names = list(records)
    for name in names:
        if roles[name] == "train and test":
            text = f"pictures of '{name}' are trained on and tested on: it is in both lists"
            found += finding("error", "leak", text, records[name].images.files)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = shared_pictures(
                (records[first], contents[first]), (records[second], contents[second])
            )
            leaks = {roles[first], roles[second]} not in ({"train"}, {"test"}, {""})
            level, kind = ("error", "leak") if leaks else ("warning", "shared")
            text = f"pictures of '{first}' are in '{second}' too"
            text += ", so the model is tested on training pictures" if leaks else ""
            found += finding(level, kind, text, shared)
    learned = {
        name for n in names if "train" in roles[n] for name in _classes_with_objects(records[n])
    }
    for name in names if any("train" in role for role in roles.values()) else ():
        unknown = [c for c in _classes_with_objects(records[name]) if c not in learned]
        text = f"classes of '{name}' have no object in the training data"
        found += finding("warning", "not_trained", text, unknown)
    return _by_level(found)


def _classes_with_objects(record: Record) -> list[str]:
    table = record.annotations
    numbers = np.unique(table.classes[~table.crowd])
    return [record.categories[number].name for number in numbers]


def check_anchors(cfg, records: Sequence[Record]) -> AnchorReport:
    """Compare the anchors of a configuration with the objects of its training data.

    Args:
        cfg: the configuration.
        records: of ``DATASETS.TRAIN``.

    Raises:
        ValueError: the anchors' keys do not fit each other, or the network.
    """
    network = network_of(cfg)
    sets, remarks = anchor_sets(cfg, network)
    if network is None or not sets:
        return AnchorReport(fits=(), remarks=tuple(remarks))
    objects = input_objects(cfg, records, divisor=network.divisor, square=network.square)
    if not len(objects):
        remarks = [*remarks, "there is no object to compare the anchors with"]
        return AnchorReport(fits=(), remarks=tuple(remarks))
    fits, found = [], []
    for anchors in sets:
        before = fit(anchors, objects)
        fits.append((before, tuple(suggest(cfg, network, anchors, before, records))))
        found += finding(
            "warning",
            "no_anchor",
            f"classes have an anchor of {anchors.node} with an IoU of .5 for less than half of "
            "their objects",
            [
                f"{name}: {100 * share:.1f} %"
                for name, share in before.share_by_class().items()
                if share < 0.5
            ],
        )
    return AnchorReport(fits=tuple(fits), remarks=tuple(remarks), findings=tuple(found))
