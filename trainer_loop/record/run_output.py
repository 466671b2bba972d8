"""What a run leaves behind besides its checkpoints and metrics."""

from collections.abc import Mapping, Sequence

from torch import nn

from trainer_loop.optim.averages import AveragedWeights
from trainer_loop.record.predictions import Scores
from trainer_loop.record.state import TrainState
from trainer_loop.runtime.preempt import Preemption


class RunOutput:
    """Nothing. `build` makes one that writes what the config asks for; all processes call each method."""

    plan_lines: Sequence[str] = ()  # what is going to happen, for a person

    def begin_run(self, run: str, *, step: int) -> None:
        """Write what the run is, before step `step`. run: its identity, which its checkpoints have too."""

    def write_predictions(self, name: str, scores: Scores) -> None:
        """Write those of the test set `name`."""

    def write_validation(self, scores: Mapping[str, Scores], *, step: int) -> None:
        """Write those of the validation sets, by the weights of step `step`, which would be exported now."""

    def export(self, model: nn.Module, state: TrainState) -> None:
        """Write the trained model."""

    def offer_weights(self, model: nn.Module, state: TrainState, averaged_weights: AveragedWeights | None) -> None:
        """Publish the weights of a checkpoint beside training, where the run does that."""

    def leave(self) -> None:
        """The run ends before its end."""

    def write_report(self, ended: str) -> None:
        """Write the report of the run. ended: how it did."""

    def publish(self, preemption: Preemption) -> None:
        """Publish the exported model, and wait for it unless the run is asked to stop."""
