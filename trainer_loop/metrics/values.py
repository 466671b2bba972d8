"""What metrics compare and return: the types by which a shipped metric annotates its parameters and its results.

A task declares the same kinds in `outputs`, such as `{"predictions": "class", "references": "class"}`. A shipped metric
fits a task if the task gives every output that the metric asks for, and each is of the kind that the metric compares.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np


@dataclass(frozen=True)
class Values:
    """One column that a metric compares."""

    kind: str  # what a task calls such values in its `outputs`
    dtype: type[np.generic] | None = None  # of the column, then `[N]`, a number a row; None: it stays as it is
    num_classes: int | None = None  # the only number of classes that the metric is defined for; None: any number


@dataclass(frozen=True)
class InParts:
    """A result over everything, and of each part by its name, reported as `entity_f1` and `entity_f1/PER`.

    whole: None for a result that has parts alone.
    """

    whole: float | None
    parts: Mapping[str, float]


@dataclass(frozen=True)
class PartsOf:
    """What the parts of a result `InParts` are called.

    name_parts: from the names of the classes to those of the parts. argument: the argument of the metric that asks for
    parts; None: there always are some. has_whole: there is a result over everything, too.
    """

    name_parts: Callable[[Sequence[str]], Sequence[str]]
    argument: str | None = None
    has_whole: bool = True


ClassNumbers: TypeAlias = Annotated[np.ndarray, Values("class", np.int64)]
ClassNumbersOfTwo: TypeAlias = Annotated[np.ndarray, Values("class", np.int64, num_classes=2)]
NegativeLogLikelihoods: TypeAlias = Annotated[np.ndarray, Values("negative_log_likelihood", np.float64)]  # in nats
TargetCounts: TypeAlias = Annotated[np.ndarray, Values("num_targets", np.int64)]
Numbers: TypeAlias = Annotated[np.ndarray, Values("number")]  # [N], or [N, K] for several a row
Tags: TypeAlias = Annotated[np.ndarray, Values("tags")]  # [N] arrays of class numbers, one for each word

Probabilities: TypeAlias = Annotated[np.ndarray, Values("probabilities")]  # [N, C]
LabelSets: TypeAlias = Annotated[np.ndarray, Values("label_set")]  # [N, C], true where a row has the label
LabelProbabilities: TypeAlias = Annotated[np.ndarray, Values("label_probabilities")]  # [N, C]

Texts: TypeAlias = Annotated[np.ndarray, Values("text")]  # [N]
TextsOfRow: TypeAlias = Annotated[np.ndarray, Values("texts")]  # [N] lists of texts, such as all right answers

SMALLER_IS_BETTER = "smaller is better"
SmallerIsBetter: TypeAlias = Annotated[float, SMALLER_IS_BETTER]  # a result, such as an error

ClassNumber: TypeAlias = Annotated[int, "is checked with the names of the classes"]  # an argument
Average: TypeAlias = Literal["binary", "micro", "macro", "weighted"]  # how scores of several classes become one
