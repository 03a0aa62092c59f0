"""How long the demo trains on this machine, and what AP it must reach."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "LEAST_ITERATIONS",
    "MOST_ITERATIONS",
    "QUICK_ITERATIONS",
    "Plan",
    "plan_for_iterations",
    "plan_for_time",
]

# (iterations, lowest AP50 that passes, lowest score that is drawn). The floors are half of what
# `python -m resobj_d2.demo --iterations N` reached, rounded down: AP50 1.6, 10.9 and 29.4, and
# with pretrained weights 18.3, 30.4 and 49.8. The floor of 900 iterations is older than this table.
_FLOORS = (
    (100, 0.5, 0.1),
    (200, 5.0, 0.1),
    (450, 14.0, 0.2),
    (900, 15.0, 0.3),
)
_PRETRAINED_FLOORS = (
    (100, 9.0, 0.1),
    (200, 15.0, 0.2),
    (450, 24.0, 0.3),
)
LEAST_ITERATIONS = _FLOORS[0][0]
MOST_ITERATIONS = _FLOORS[-1][0]  # longer training adds little on these scenes
QUICK_ITERATIONS = 200
# Time for evaluation and pictures, in iterations.
_REST_IN_ITERATIONS = 50


@dataclass(frozen=True)
class Plan:
    """How long to train, and what the result is compared with.

    Attributes:
        iterations: number of training iterations.
        floor: the AP50 below which the demo fails.
        drawn: the lowest score drawn in the pictures.
    """

    iterations: int
    floor: float
    drawn: float


def plan_for_iterations(iterations: int, *, pretrained: bool = False) -> Plan:
    """The floor is that of the next shorter measured training; 0 below the shortest."""
    floors = _PRETRAINED_FLOORS if pretrained else _FLOORS
    floor, drawn = 0.0, floors[0][2]
    for measured, *values in floors:
        if iterations >= measured:
            floor, drawn = values
    return Plan(iterations, floor, drawn)


def plan_for_time(
    *, minutes: float, elapsed: float, seconds_per_iteration: float, pretrained: bool = False
) -> tuple[Plan, str]:
    """As many iterations as fit, between the fewest and the most that are useful.

    Args:
        minutes: limit for the whole demo.
        elapsed: seconds already spent.
        seconds_per_iteration: measured time of a training iteration.
        pretrained: the network has ImageNet weights.

    Returns:
        The plan, and one or two sentences that state it and explain why.
    """
    fitting = int((60 * minutes - elapsed) / seconds_per_iteration) - _REST_IN_ITERATIONS
    iterations = max(LEAST_ITERATIONS, min(MOST_ITERATIONS, fitting // 10 * 10))
    plan = plan_for_iterations(iterations, pretrained=pretrained)
    whole = elapsed + (iterations + _REST_IN_ITERATIONS) * seconds_per_iteration
    speed = f"An iteration takes {seconds_per_iteration:.2g} s here"
    takes = f"about {whole / 60:.1f} minutes in all"
    if fitting >= MOST_ITERATIONS:
        text = f"{speed}: training for {iterations} iterations, {takes}."
    elif fitting >= LEAST_ITERATIONS:
        text = (
            f"{speed}: training for the {iterations} iterations that fit into {minutes:g} minutes; "
            f"{MOST_ITERATIONS} would detect more."
        )
    else:
        text = (
            f"{speed}, too long for {minutes:g} minutes: training for {iterations} iterations, the "
            f"useful minimum, {takes}."
        )
    return plan, text
