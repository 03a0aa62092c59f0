"""The evaluation of boxes written once more, box by box: what the fast code is compared with."""

import dataclasses

import numpy as np

from resobj_d2.analysis.evaluation_set import EvaluationSet
from resobj_d2.data.coco_json import read_coco_content


def iou(a, b, crowd=False):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)


def rows_of(data):
    """Ground truth and detections as lists of dicts by image."""
    images = [([], []) for _ in data.image_ids]
    g, d = data.objects, data.detections
    for row in range(len(g)):
        images[g.images[row]][0].append(
            {
                "row": row, "class": int(g.classes[row]), "box": g.boxes[row].tolist(),
                "crowd": bool(g.crowd[row]), "ignored": bool(g.ignored[row]), "used": False,
            }
        )  # fmt: skip
    for row in range(len(d)):
        images[d.images[row]][1].append(
            {
                "row": row, "class": int(d.classes[row]), "box": d.boxes[row].tolist(),
                "score": float(d.scores[row]), "object": None, "ignored": False,
            }
        )  # fmt: skip
    for _, found in images:
        found.sort(key=lambda x: -x["score"])  # stable
    return images


def match(data, threshold, *, ignored=(), outside=()):
    """COCO's matching box by box; fills "used", "object" and "ignored".

    Args:
        ignored: rows of further objects that need not be found.
        outside: rows of detections that are not judged where they find nothing.
    """
    images = rows_of(data)
    for objects, found in images:
        for o in objects:
            o["ignored"] |= o["row"] in ignored
        for x in found:
            same = [o for o in objects if o["class"] == x["class"]]
            best = _best_free(x, [o for o in same if not o["ignored"]], threshold)
            if best is None:
                best = _best_free(x, [o for o in same if o["ignored"]], threshold)
            if best is not None:
                best["used"] = True
                x["object"], x["ignored"] = best, best["ignored"]
            elif x["row"] in outside:
                x["ignored"] = True
    return images


def _best_free(x, objects, threshold):
    best, best_iou = None, threshold
    for o in objects:
        value = iou(x["box"], o["box"], o["crowd"])
        if value >= best_iou and (o["crowd"] or not o["used"]):
            best, best_iou = o, value
    return best


def average_precision(points, positives):
    """Of (score, correct) in the order of the evaluation; COCO's 101 recalls."""
    if positives == 0:
        return None
    points = sorted(points, key=lambda p: -p[0])
    recalls, precisions = [], []
    hits = 0
    for number, (_, correct) in enumerate(points, 1):
        hits += correct
        recalls.append(hits / positives)
        precisions.append(hits / number)
    total = 0.0
    for level in np.linspace(0, 1, 101):
        total += max([p for r, p in zip(recalls, precisions, strict=True) if r >= level], default=0)
    return total / 101


def precisions(data, threshold, **groups):
    """AP of each class; None without objects."""
    images = match(data, threshold, **groups)
    result = []
    for number in range(data.num_classes):
        points = [
            (x["score"], x["object"] is not None)
            for _, found in images
            for x in found
            if x["class"] == number and not x["ignored"]
        ]
        positives = sum(
            o["class"] == number and not o["ignored"] for objects, _ in images for o in objects
        )
        result.append(average_precision(points, positives))
    return result


def errors(data, threshold=0.5, background=0.1):
    """TIDE by loops.

    Returns:
        By kind the number of errors, and by kind (and "base") the AP of each class after they were
        corrected.
    """
    images = match(data, threshold)
    for objects, found in images:
        real = [o for o in objects if not o["ignored"]]
        for o in real:
            o["blamed"] = False
        for x in found:
            x["kind"] = _kind(x, real, threshold, background)
    missed = [
        o for objects, _ in images for o in objects if not o["ignored"] and not o["used"]
    ]  # fmt: skip
    everything = [(o, x) for o, x in images]
    kinds = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FP", "FN")
    counts = {
        kind: sum(x["kind"] == kind for _, found in images for x in found) for kind in kinds[:5]
    }
    counts["Miss"] = sum(not o["blamed"] for o in missed)
    counts["FP"] = sum(counts[kind] for kind in kinds[:5])
    counts["FN"] = len(missed)
    aps = {kind: _fixed(everything, kind, data.num_classes) for kind in ("base", *kinds)}
    return counts, aps


def _kind(x, real, threshold, background):
    if x["ignored"]:
        return "ignored"
    if x["object"] is not None:
        return "correct"
    own = [(iou(x["box"], o["box"]), o) for o in real if o["class"] == x["class"]]
    other = [(iou(x["box"], o["box"]), o) for o in real if o["class"] != x["class"]]
    best_own = max(own, key=lambda pair: pair[0], default=(0, None))
    best_other = max(other, key=lambda pair: pair[0], default=(0, None))
    if background <= best_own[0] < threshold:
        x["about"] = best_own[1]
    elif best_other[0] >= threshold:
        x["about"] = best_other[1]
    if "about" in x and not x["about"]["used"]:
        x["about"]["blamed"] = True
    if background <= best_own[0] < threshold:
        return "Loc"
    if best_other[0] >= threshold:
        return "Cls"
    if best_own[0] >= threshold:
        return "Dupe"
    return "Bkg" if max(best_own[0], best_other[0]) < background else "Both"


def _fixed(images, kind, num_classes):
    points = [[] for _ in range(num_classes)]
    positives = [0] * num_classes
    objects_of_class = [0] * num_classes
    for objects, found in images:
        for o in objects:
            if o["ignored"]:
                continue
            objects_of_class[o["class"]] += 1
            gone = not o["used"] and (kind == "FN" or (kind == "Miss" and not o["blamed"]))
            positives[o["class"]] += not gone
        saved = _saved(found, kind)
        for x in found:
            if x["kind"] == "ignored":
                continue
            if x["kind"] == "correct":
                points[x["class"]].append((x["score"], True))
            elif x["row"] in saved:
                points[x["about"]["class"]].append((x["score"], True))
            elif kind not in (x["kind"], "FP"):
                points[x["class"]].append((x["score"], False))
    result = [average_precision(p, n) for p, n in zip(points, positives, strict=True)]
    return [1.0 if ap is None and n else ap for ap, n in zip(result, objects_of_class, strict=True)]


def _saved(found, kind):
    """Rows of the best detection of each object that is not found, of errors of this kind."""
    best = {}
    for x in found:  # best first
        if x["kind"] == kind and "about" in x and not x["about"]["used"]:
            best.setdefault(x["about"]["row"], x["row"])
    return set(best.values())


def confusions(data, confidence, threshold):
    """Pairs one to one, of the same class first, then by falling IoU."""
    size = data.num_classes
    counts = np.zeros((size + 1, size + 1), dtype=int)
    for objects, found in rows_of(data):
        real = [o for o in objects if not o["ignored"]]
        found = [x for x in found if x["score"] >= confidence]
        pairs = [
            (o["class"] == x["class"], iou(x["box"], o["box"]), x, o) for x in found for o in real
        ]
        pairs = sorted((p for p in pairs if p[1] >= threshold), key=lambda p: (not p[0], -p[1]))
        for _, _, x, o in pairs:
            if x["object"] is None and not o["used"]:
                x["object"], o["used"] = o, True
                counts[o["class"], x["class"]] += 1
        for x in found:
            near = any(
                o["ignored"] and o["class"] == x["class"]
                and iou(x["box"], o["box"], o["crowd"]) >= threshold
                for o in objects
            )  # fmt: skip
            if x["object"] is None and not near:
                counts[size, x["class"]] += 1
        for o in real:
            if not o["used"]:
                counts[o["class"], size] += 1
    return counts


def content(objects, *, classes=2, images=None):
    """A COCO json of objects: (image, class, [x, y, w, h]), then any of "crowd", "difficult"."""
    last = max([x[0] for x in objects], default=0)
    return {
        "images": [
            {"id": i, "width": 400, "height": 400, "file_name": f"{i}.png"}
            for i in range(last + 1 if images is None else images)
        ],
        "categories": [{"id": 10 + c, "name": "abcdefgh"[c]} for c in range(classes)],
        "annotations": [
            {
                "id": i, "image_id": image, "category_id": 10 + label, "bbox": box,
                "area": box[2] * box[3], "iscrowd": int("crowd" in marks),
                "difficult": int("difficult" in marks),
            }
            for i, (image, label, box, *marks) in enumerate(objects, 1)
        ],
    }  # fmt: skip


def results(detections):
    """Entries of a COCO results json: (image, class, [x, y, w, h], score)."""
    return [
        {"image_id": image, "category_id": 10 + label, "bbox": box, "score": score}
        for image, label, box, score in detections
    ]


def record(objects, **more):
    """The record of :func:`content`."""
    return read_coco_content(content(objects, **more))


def evaluation_set(objects, detections, *, classes=2, images=None, name="made"):
    """A set by hand, of :func:`content` and :func:`results`."""
    if images is None:
        images = max([x[0] for x in (*objects, *detections)], default=0) + 1
    truth = record(objects, classes=classes, images=images)
    return EvaluationSet.of(truth, results(detections), name=name)


def only_images(data, kept):
    """The set without the objects and detections of all but some images."""
    return dataclasses.replace(
        data,
        objects=data.objects.take(np.isin(data.objects.images, kept)),
        detections=data.detections.take(np.isin(data.detections.images, kept)),
    )


def random_set(seed, *, images=12, classes=3, crowd=True, ties=True):
    """Crowded images with every kind of error; some scores are equal, unless ``ties`` is False."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 7)):
            box = [*rng.integers(0, 300, 2).tolist(), *rng.integers(12, 90, 2).tolist()]
            label = int(rng.integers(0, classes - 1))  # the last class has no objects
            marks = ["crowd"] if crowd and rng.random() < 0.12 else []
            if crowd and not marks and rng.random() < 0.12:
                marks = ["difficult"]
            objects.append((image, label, box, *marks))
            for _ in range(rng.integers(0, 4)):
                moved = np.array(box) + rng.integers(-14, 15, 4)
                moved[2:] = moved[2:].clip(4)
                claimed = label if rng.random() < 0.7 else int(rng.integers(0, classes))
                score = round(float(rng.random()), 1 if ties and rng.random() < 0.5 else 6)
                detections.append((image, claimed, moved.tolist(), score))
        for _ in range(rng.integers(0, 3)):
            box = [*rng.integers(0, 340, 2).tolist(), *rng.integers(8, 60, 2).tolist()]
            detections.append((image, int(rng.integers(0, classes)), box, rng.random()))
    return evaluation_set(objects, detections, classes=classes, images=images)
