"""The categories of a COCO json."""

from __future__ import annotations

import reprlib
from collections import defaultdict
from collections.abc import Collection, Sequence

from .notes import Notes
from .record import Category
from .values import whole_number_of

__all__ = ["read_categories"]


def read_categories(
    items: Sequence[dict],
    used: Collection[int | None],
    where: str,
    notes: Notes,
    *,
    need_names: bool = True,
) -> tuple[Category, ...]:
    """Categories by ascending id.

    Args:
        items: of the list 'categories'; their ids are whole numbers or strings, all different.
        used: ids that annotations have.
        where: begins every message.
        notes: takes what is mended.
        need_names: False for a file that other code registered: a missing name is the id.

    Raises:
        ValueError: an id is no whole number, a name no string, or two categories in use share one.
    """
    categories = []
    for item in items:
        identity, name = item["id"], item.get("name")
        if type(identity) is str:
            identity = whole_number_of(identity)
            notes.add("text_number", f"category id {item['id']!r}")
        if name is None and not need_names:
            name = str(identity)
        if type(name) is int:
            notes.add("text_number", f"category {identity}: name {name}")
            name = str(name)
        if identity is None or not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"{where}: a category needs a whole number as 'id' and a non-empty string as "
                f"'name', got {reprlib.repr(item)}"
            )
        keypoints, skeleton = _keypoints(item, notes)
        categories.append(Category(id=identity, name=name, keypoints=keypoints, skeleton=skeleton))
    categories.sort(key=lambda category: category.id)
    repeated = [b.id for a, b in zip(categories, categories[1:], strict=False) if a.id == b.id]
    if repeated:
        raise ValueError(f"{where}: the id {repeated[0]} occurs twice in 'categories'")
    return _without_twins(categories, used, where, notes)


def _without_twins(
    categories: Sequence[Category], used: Collection[int | None], where: str, notes: Notes
) -> tuple[Category, ...]:
    """Of categories of one name the one that annotations have."""
    by_name = defaultdict(list)
    for category in categories:
        by_name[category.name].append(category)
    left_out = set()
    for name, twins in by_name.items():
        busy = [category for category in twins if category.id in used]
        if len(busy) > 1:
            ids = " and ".join(str(category.id) for category in busy)
            raise ValueError(
                f"{where}: the categories {ids} are both called '{name}' and both have "
                "annotations: give them different names, or one id"
            )
        kept = busy[0] if busy else twins[0]
        for category in twins:
            if category is not kept:
                notes.add("twin_category", f"{category.id} '{name}' beside {kept.id}")
                left_out.add(category.id)
    return tuple(category for category in categories if category.id not in left_out)


def _keypoints(item: dict, notes: Notes) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Names of keypoints, and their connections from 0."""
    names, lines = item.get("keypoints") or [], item.get("skeleton") or []
    names_fit = isinstance(names, list) and all(isinstance(n, str) and n for n in names)
    if not names_fit or len(set(names)) < len(names):
        notes.add("category_keypoints", f"category {item['id']}: {names!r}"[:100])
        return (), ()
    lines_fit = isinstance(lines, list) and all(
        isinstance(line, list)
        and len(line) == 2
        and all(type(end) is int and 1 <= end <= len(names) for end in line)
        for line in lines
    )
    if not lines_fit:
        notes.add("category_keypoints", f"category {item['id']}: skeleton {lines!r}"[:100])
        lines = []
    return tuple(names), tuple((a - 1, b - 1) for a, b in lines)
