"""The tasks that come with the package, by name."""

from trainer_loop.tasks.causal_lm import CausalLM
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.tasks.task import TextTask

TASKS: dict[str, type[TextTask]] = {"sequence_classification": SequenceClassification, "causal_lm": CausalLM}
