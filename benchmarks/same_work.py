"""Whether all sides did the same work; otherwise a ratio of their times means nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

Outcomes = Mapping[str, Sequence[Mapping[str, Any]]]  # side -> results of its rounds


def find_differences(outcomes: Outcomes, *, equal: Sequence[str], close: Mapping[str, float]) -> list[str]:
    """Differences between sides and rounds, as sentences; none if all did the same.

    Args:
        outcomes: results of every round, by side.
        equal: names of values that must be equal everywhere.
        close: names of values, and the relative difference that is allowed.
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
                if not abs(result[name] - first[name]) <= tolerance * abs(first[name]):  # nan counts as a difference
                    differences.append(
                        f"{name}: {side} {result[name]:.6g}, {first_side} {first[name]:.6g}, further apart than "
                        f"{tolerance:.2%}"
                    )
    return list(dict.fromkeys(differences))


def tell_differences(differences: Sequence[str]) -> None:
    """Print the differences instead of ratios."""
    print("the sides did not do the same work, so nothing is compared:")
    for difference in differences:
        print(f"  {difference}")
