"""The data of one run: training, validation and test loaders."""

from collections.abc import Mapping
from typing import Any

from trainer_loop.data.loader import EvaluationLoader, StepBatch, StepLoader
from trainer_loop.errors import UserError

Loaders = Mapping[str, EvaluationLoader]  # by the name of the set; a single set may have the empty name


class RunData:
    """Loaders of the training rows, and of validation and test sets."""

    def __init__(self, train: StepLoader, *, validation: Loaders | None = None, test: Loaders | None = None):
        self.train = train
        self.validation = dict(validation or {})
        self.test = dict(test or {})
        self.max_tokens: int | None = None  # most padded tokens of a training microbatch; set when memory ran out

    def cut_smaller(self, step: int) -> StepBatch:
        """Return training step `step` (from 0) again, in smaller microbatches. Later steps use the smaller size too.

        Raises:
            UserError: The microbatches have one row each already.
        """
        step_batch = self.train.cut_smaller(step)
        if step_batch is None:
            raise UserError(
                f"step {step + 1}: out of memory with one row a microbatch; lower data.max_length, choose a smaller "
                "model, or set model.gradient_checkpointing=true"
            )
        self.max_tokens = self.train.max_tokens
        return step_batch

    def describe_cut(self, step: int) -> str:
        """Return a message about the last `cut_smaller`."""
        return (
            f"step {step + 1} ran out of memory: it is done again, and all that follow are done, in microbatches of "
            f"at most {self.max_tokens:,} padded tokens; batch.max_tokens={self.max_tokens} says so from the start"
        )

    def limit_tokens(self, max_tokens: int) -> None:
        """Limit the padded tokens of training microbatches, as after an out-of-memory error."""
        self.max_tokens = max_tokens
        self.train.limit_tokens(max_tokens)

    def load_rows(self, rows: Any, *, labelled: bool) -> EvaluationLoader:
        """Return a loader for in-memory rows, in the forms that `build` takes.

        Args:
            labelled: If true, the targets are counted and the rows are divided among the processes; if false, each
                process has all rows.
        """
        raise UserError("this loop has no config that says how rows are encoded: pass an EvaluationLoader")
