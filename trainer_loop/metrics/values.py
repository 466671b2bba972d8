"""Types for the parameters and results of shipped metrics.

A task declares the same kinds in `outputs`, such as `{"predictions": "class", "references": "class"}`. A shipped metric
fits a task if the task has all outputs that the metric needs, with the same kinds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np


@dataclass(frozen=True)
class Values:
    """One column that a metric compares."""

    kind: str  # kind of these values in the `outputs` of a task
    dtype: type[np.generic] | None = None  # dtype that the column `[N]` is converted to; None: it is not converted
    num_classes: int | None = None  # the metric is only defined for this number of classes; None: for any number


@dataclass(frozen=True)
class InParts:
    """A result over all rows, and one for each part, reported as `entity_f1` and `entity_f1/PER`.

    Attributes:
        whole: The result over all rows; None: there are only parts.
    """

    whole: float | None
    parts: Mapping[str, float]


@dataclass(frozen=True)
class PartsOf:
    """Declares the names of the parts of a result `InParts`.

    Attributes:
        name_parts: Returns the names of the parts, from the names of the classes.
        argument: Argument of the metric that turns parts on; None: they are always reported.
        has_whole: There is also a result over all rows.
    """

    name_parts: Callable[[Sequence[str]], Sequence[str]]
    argument: str | None = None
    has_whole: bool = True


ClassNumbers: TypeAlias = Annotated[np.ndarray, Values("class", np.int64)]
ClassNumbersOfTwo: TypeAlias = Annotated[np.ndarray, Values("class", np.int64, num_classes=2)]
NegativeLogLikelihoods: TypeAlias = Annotated[np.ndarray, Values("negative_log_likelihood", np.float64)]  # in nats
TargetCounts: TypeAlias = Annotated[np.ndarray, Values("num_targets", np.int64)]
Numbers: TypeAlias = Annotated[np.ndarray, Values("number")]  # [N], or [N, K] for K numbers per row
Tags: TypeAlias = Annotated[np.ndarray, Values("tags")]  # [N] arrays of class numbers, one for each word

Probabilities: TypeAlias = Annotated[np.ndarray, Values("probabilities")]  # [N, C]
LabelSets: TypeAlias = Annotated[np.ndarray, Values("label_set")]  # [N, C], true if the row has the label
LabelProbabilities: TypeAlias = Annotated[np.ndarray, Values("label_probabilities")]  # [N, C]

Texts: TypeAlias = Annotated[np.ndarray, Values("text")]  # [N]
TextsOfRow: TypeAlias = Annotated[np.ndarray, Values("texts")]  # [N] lists of texts, such as all correct answers

SMALLER_IS_BETTER = "smaller is better"
SmallerIsBetter: TypeAlias = Annotated[float, SMALLER_IS_BETTER]  # type of a result, such as an error

ClassNumber: TypeAlias = Annotated[int, "is checked with the names of the classes"]  # type of an argument
Average: TypeAlias = Literal["binary", "micro", "macro", "weighted"]  # averaging of scores over classes
