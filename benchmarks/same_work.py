"""Whether all sides did the same work: without that a ratio of their times says nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

Outcomes = Mapping[str, Sequence[Mapping[str, Any]]]  # side -> what each round returned


def find_differences(outcomes: Outcomes, *, equal: Sequence[str], close: Mapping[str, float]) -> list[str]:
    """Sentences on what differs between the sides and rounds; none where all did the same.

    equal: figures that must be the same everywhere. close: figures and by which share of the first they may differ.
    """
    first_side, rounds = next(iter(outcomes.items()))
    first = rounds[0]
    differences = []
    for side, results in outcomes.items():
        for result in results:
            for name in equal:
                if result[name] != first[name]:
                    differences.append(f"{name}: {side} {result[name]}, {first_side} {first[name]}")
            for name, tolerance in close.items():
                if not abs(result[name] - first[name]) <= tolerance * abs(first[name]):  # nan is a difference, too
                    differences.append(
                        f"{name}: {side} {result[name]:.6g}, {first_side} {first[name]:.6g}, further apart than "
                        f"{tolerance:.2%}"
                    )
    return list(dict.fromkeys(differences))


def tell_differences(differences: Sequence[str]) -> None:
    """Print them in place of ratios."""
    print("the sides did not do the same work, so nothing is compared:")
    for difference in differences:
        print(f"  {difference}")
