"""The rows of one run, by what they are for."""

from collections.abc import Mapping
from typing import Any

from trainer_loop.data.loader import EvaluationLoader, StepBatch, StepLoader
from trainer_loop.errors import UserError

Loaders = Mapping[str, EvaluationLoader]  # by the names of their sets; an only set may have the empty name


class RunData:
    """Loaders of the training rows, and of validation and test sets."""

    def __init__(self, train: StepLoader, *, validation: Loaders | None = None, test: Loaders | None = None):
        self.train = train
        self.validation = dict(validation or {})
        self.test = dict(test or {})
        self.max_tokens: int | None = None  # padded tokens of a training microbatch, once more did not fit into memory

    def cut_smaller(self, step: int) -> StepBatch:
        """Training step `step` (from 0) again, in smaller microbatches, which all later steps keep.

        Raises:
            UserError: where its microbatches have one row each.
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
        """What `cut_smaller` did, for a person."""
        return (
            f"step {step + 1} ran out of memory: it is done again, and all that follow are done, in microbatches of "
            f"at most {self.max_tokens:,} padded tokens; batch.max_tokens={self.max_tokens} says so from the start"
        )

    def limit_tokens(self, max_tokens: int) -> None:
        """As if a microbatch of more padded tokens had not fitted into memory."""
        self.max_tokens = max_tokens
        self.train.limit_tokens(max_tokens)

    def load_rows(self, rows: Any, *, labelled: bool) -> EvaluationLoader:
        """A loader for in-memory rows, in the forms that `build` takes.

        Args:
            labelled: the targets are counted and the processes share the rows; else every process has all of them.
        """
        raise UserError("this loop has no config that says how rows are encoded: pass an EvaluationLoader")
