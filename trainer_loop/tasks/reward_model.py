"""Reward model: a number for a conversation that says how good its answer is."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainer_loop.data.columns import Column
from trainer_loop.data.conversations import find_fault_of_pair, read_pairs
from trainer_loop.errors import UserError
from trainer_loop.tasks.chat_template import ChatTemplate, TemplateFault, read_code_of_conversations
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.preference import Preference, compare_by
from trainer_loop.tasks.task import Batch, OnePassTask, Rows


class RewardModel(OnePassTask):
    """A row is a prompt with two answers, a chosen and a rejected one. A target is a row. The model rates each answer.

    The loss is that of Bradley and Terry: the negative log sigmoid of the difference between the rewards of the chosen
    and the rejected answer. The chat template formats the conversations. Conversations longer than `data.max_length`
    are truncated at their start, in training as in prediction. Instead of a prompt with answers, a row may have two
    whole conversations, `chosen_messages` and `rejected_messages`. `predict` rates one conversation, or a prompt with
    an answer as `chosen`. The means of both rewards and of their margin are logged. The tokens of a row are those of
    both conversations.

    Args:
        center_rewards_coefficient: How strongly the sum of both rewards of a row is kept near 0 (arXiv 2312.09244),
            such as 0.01. 0: not at all, because the loss depends only on their difference.
    """

    auto_model = "AutoModelForSequenceClassification"
    auto_processor = "AutoTokenizer"
    of_tokens = ()
    columns: ClassVar[Mapping[str, Column]] = {
        "prompt": Column("prompt", form="prompt"),
        "chosen": Column("answer", form="prompt"),
        "rejected": Column("answer", form="prompt", target=True),
        "chosen_messages": Column("conversation", form="chosen_messages"),
        "rejected_messages": Column("conversation", form="chosen_messages", target=True),
    }
    pad: ClassVar[Mapping[str, int]] = {"num_conversations": 0}
    metrics = ("accuracy",)
    extra_metrics = Preference.extra_metrics
    outputs: ClassVar[Mapping[str, str] | None] = {"predictions": "class", "references": "class"}
    peft_type = "SEQ_CLS"
    problem_type = "regression"
    pipeline_tag = "text-classification"
    is_tried = False  # a row is two sequences
    predicted: ClassVar[Mapping[str, str]] = {"reward": "reward of the conversation"}
    example: ClassVar[Sequence[Mapping[str, Any]]] = Preference.example

    def __init__(self, *, center_rewards_coefficient: float = 0.0):
        if not center_rewards_coefficient >= 0:
            raise UserError(
                f"task.args.center_rewards_coefficient: {center_rewards_coefficient}: it must be at least 0"
            )
        self.center_rewards_coefficient = center_rewards_coefficient
        self.loss_function = cross_entropy  # over the rewards `[N, 2]`, of which the first is the correct choice

    def bind(self, processor: Any, **others: Any) -> None:
        """See `Task.bind`. Raises UserError if the tokenizer has no chat template."""
        super().bind(processor, **others)
        self._template = ChatTemplate.of(processor)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "code": read_code_of_conversations()}

    @property
    def frames_texts(self) -> bool:
        """False, because the chat template writes the special tokens."""
        return False

    @property
    def example_texts(self) -> Sequence[str]:
        return ("How often does the ferry go?", "Twice a day.")

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Encode the two conversations of each row, `[2][T]`, the chosen one first; for a row to predict, `[1][T]`."""
        names = ("input_ids", "length", "truncated", "fault")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for conversations in read_pairs(rows):
            try:
                whole = [self._template.write(messages) for messages in conversations]
                fault = find_fault_of_pair(conversations) if len(conversations) > 1 else None
            except TemplateFault as error:
                whole, fault = [[]], str(error)
            ids = [tokens[-max_length:] for tokens in whole]
            columns["input_ids"].append(ids)
            columns["length"].append(len(ids) * max(map(len, ids)))
            columns["truncated"].append(max(map(len, whole)) > max_length)
            columns["fault"].append(fault)
        return columns

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Stack the conversations of all rows, `[2 B, T]`. `num_conversations` is their number per row."""
        batch = super().collate([{"input_ids": ids} for row in rows for ids in row["input_ids"]])
        return {**batch, "num_conversations": len(rows[0]["input_ids"])}

    def count(self, batch: Batch) -> int:
        return len(batch["input_ids"]) // int(batch["num_conversations"])

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `reward`."""
        return {"reward": float(outputs["rewards"])}

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the rewards `[B, 2]`, the chosen one first, or `[B, 1]` for rows with one conversation."""
        rewards: Tensor = super()._logits(model, batch)[:, 0]
        return rewards.to(torch.promote_types(rewards.dtype, torch.float32)).view(-1, batch["num_conversations"])

    def _sum_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        chosen, rejected = logits.unbind(dim=1)
        for name, values in zip(self.extra_metrics, (chosen, rejected, chosen - rejected), strict=True):
            self.log_metric(name, values.sum(), count=len(values))
        first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return self.loss_function(logits, first) + self.center_rewards_coefficient * logits.sum(dim=1).square().sum()

    def _make_outputs(self, logits: Tensor, batch: Batch) -> dict[str, Any]:
        """Return the `rewards` `[B]` of the only conversation of each row, or of the chosen one.

        For rows with two, also return `predictions` `[B]`, 1 if the chosen one has the larger reward, and `margins`.
        """
        outputs = {"rewards": logits[:, 0]}
        if logits.shape[1] == 1:
            return outputs
        return {**outputs, **compare_by(logits[:, 0] - logits[:, 1])}
