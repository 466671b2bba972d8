"""The results of a run besides its checkpoints and metrics."""

from collections.abc import Mapping, Sequence

from torch import nn

from trainer_loop.optim.averages import AveragedWeights
from trainer_loop.record.predictions import Scores
from trainer_loop.record.state import TrainState
from trainer_loop.runtime.preempt import Preemption


class RunOutput:
    """Writes nothing. `build` makes a subclass that writes what the config asks for. All processes call each method."""

    plan_lines: Sequence[str] = ()  # the plan of the run as text

    def begin_run(self, run: str, *, step: int) -> None:
        """Write the facts of the run, before step `step`. run: its identity, also stored in its checkpoints."""

    def write_predictions(self, name: str, scores: Scores) -> None:
        """Write the predictions of the test set `name`."""

    def write_validation(self, scores: Mapping[str, Scores], *, step: int) -> None:
        """Write the predictions of the validation sets, by the weights of step `step`, which would be exported now."""

    def withdraw_validation(self) -> None:
        """Called if the weights of the last `write_validation` could not be saved, and so cannot be exported."""

    def export(self, model: nn.Module, state: TrainState) -> None:
        """Write the trained model."""

    def offer_weights(self, model: nn.Module, state: TrainState, averaged_weights: AveragedWeights | None) -> None:
        """Publish the weights of a checkpoint during training, if the config asks for it."""

    def leave(self) -> None:
        """Called when the run is stopped before its last step."""

    def write_report(self, ended: str) -> None:
        """Write the report of the run. ended: how the run ended."""

    def publish(self, preemption: Preemption) -> None:
        """Publish the exported model, and wait for it unless the run is asked to stop."""
