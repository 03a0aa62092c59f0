"""T1, T2: a training step and inference of RetinaNet R50-FPN, Detectron2's and ours."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import inputs
from benchmarks.case import Call, Case, Target

SHARE = "label and loss in % of a step"
CONVOLUTIONS = "convolutions in % of a step (ours)"


def make_training(image: tuple[int, int], counts: list[int], depth: int = 50):
    def models(device: torch.device, seed: int) -> tuple:
        from benchmarks import detectors

        theirs, ours = detectors.retinanets(device, seed, depth)
        batch = detectors.make_batch(image, counts, seed)
        return (
            detectors.Training(theirs, theirs.head, batch),
            detectors.Training(ours, ours.streams["anchors"], batch),
        )

    return models


def training_step(training) -> Call:
    from benchmarks.detectors import Step

    return lambda: Step(training.step(), training.share, training.convolutions)


def ours_training(theirs, ours) -> Call:
    return training_step(ours)


def detectron2_training(theirs, ours) -> Call:
    return training_step(theirs)


def verify_training(a: Any, b: Any) -> None:
    from benchmarks.detectors import verify_losses

    verify_losses(a, b)


def shares(ours: Any, peers: dict[str, Any]) -> dict[str, float]:
    theirs = {f"{SHARE} ({name})": step.share() for name, step in peers.items()}
    return {f"{SHARE} (ours)": ours.share(), **theirs}


def shares_on_cpu(ours: Any, peers: dict[str, Any]) -> dict[str, float]:
    return {**shares(ours, peers), CONVOLUTIONS: ours.convolutions()}


def make_inference(image: tuple[int, int], images: int, depth: int = 50):
    def models(device: torch.device, seed: int) -> tuple:
        from benchmarks import detectors

        theirs, ours = detectors.retinanets(device, seed, depth)
        return theirs.eval(), ours.eval(), detectors.make_batch(image, [0] * images, seed)

    return models


def detect(model, batch) -> Call:
    def call() -> list[dict]:
        with torch.no_grad():
            return model(batch)

    return call


def ours_inference(theirs, ours, batch) -> Call:
    return detect(ours, batch)


def detectron2_inference(theirs, ours, batch) -> Call:
    return detect(theirs, batch)


def verify_inference(a: Any, b: Any) -> None:
    from benchmarks.detectors import verify_detections

    verify_detections(a, b)


def training_case(
    size: str,
    image: tuple[int, int],
    counts: list[int],
    *,
    device: str,
    target: Target | None = None,
    most: float | None = None,
    depth: int = 50,
) -> Case:
    return Case(
        id="T1",
        size=size,
        make=make_training(image, counts, depth),
        ours=ours_training,
        peers={"Detectron2": detectron2_training},
        verify=verify_training,
        targets={"Detectron2": target} if target else {},
        devices=(device,),
        metrics=shares_on_cpu if device == "cpu" else shares,
        limits={} if most is None else {f"{SHARE} (ours)": most},
        max_threads=1,
        min_rounds=3,
        slow=device == "cpu",
    )


def inference_case(
    size: str, image: tuple[int, int], images: int, *, device: str, depth: int = 50
) -> Case:
    return Case(
        id="T2",
        size=size,
        make=make_inference(image, images, depth),
        ours=ours_inference,
        peers={"Detectron2": detectron2_inference},
        verify=verify_inference,
        devices=(device,),
    )


# Numbers of boxes typical of COCO images.
COCO_COUNTS = [1, 2, 4, 5, 7, 9, 12, 19]

CASES = [
    training_case("320x320 x 2", (320, 320), [10, 200], device="cpu", most=1.5),
    # The memory of a step, at a size where the maps outweigh the weights.
    training_case("800x1056 of ResNet-18", (800, 1056), [7], device="cpu", depth=18),
    training_case("800x1344 x 8", inputs.IMAGE, COCO_COUNTS, device="cuda"),
    inference_case("800x1344 x 1", inputs.IMAGE, 1, device="cuda"),
    inference_case("800x1344 x 8", inputs.IMAGE, 8, device="cuda"),
]
