"""What is judged, and what was found good."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn
from transformers import PretrainedConfig

from trainer_loop.config.named_sets import parse_set
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.tokens import TokenisedSplit
from trainer_loop.data.train_stream import TrainStream
from trainer_loop.errors import UserError
from trainer_loop.tasks.task import RowTask

_T = TypeVar("_T")


@dataclass(frozen=True)
class Parts:
    """What was judged and found good."""

    task: RowTask
    splits: dict[str, TokenisedSplit]  # without train where that is streamed
    stream: TrainStream | None
    labels: LabelNames | None
    tokenizer: Any | None  # this and the next: of a task on texts
    model_config: PretrainedConfig | None
    precision: str

    @property
    def label_names(self) -> list[str] | None:
        return None if self.labels is None else self.labels.names


@dataclass(frozen=True)
class Given:
    """What was made in Python, and takes the place of what the config names."""

    task: RowTask | None = None
    model: nn.Module | None = None
    rows: Mapping[str, Any] = field(default_factory=dict)  # train, validation, test, or one of several: test.hard

    @property
    def sets(self) -> list[str]:
        """The validation sets among the rows, by their names."""
        return [part for split, part in map(parse_set, self.rows) if split == "validation"]


def attempt(problems: list[str], function: Callable[[], _T]) -> _T | None:
    """The result, or None with its problems put to the others."""
    try:
        return function()
    except UserError as error:
        problems += error.problems
        return None
