"""Direct Preference Optimization: learn which of two answers is better."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer_loop.components import refuse_others
from trainer_loop.data.columns import Column
from trainer_loop.data.conversations import find_fault_of_pair, read_pairs
from trainer_loop.errors import UserError
from trainer_loop.tasks.chat import Chat, label_answers
from trainer_loop.tasks.generation import count_vocabulary
from trainer_loop.tasks.language_model import negative_log_likelihood
from trainer_loop.tasks.task import Batch, Rows

LossType = Literal["sigmoid", "hinge", "ipo"]


class Preference(Chat):
    """A row is a prompt with two answers, a chosen and a rejected one. A target is a row.

    This is Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290). The model learns to make the chosen
    answer more likely than the rejected one, relative to the model before the first update. Instead of a prompt with
    answers, a row may have two whole conversations, `chosen_messages` and `rejected_messages`. The reward of an answer
    is `beta` times the increase of its log probability. The means of both rewards and of their margin are logged in
    training and in evaluation. The tokens of a row are those of both conversations.

    Args:
        beta: How strongly the model is kept close to the initial model; larger is stronger.
        loss_type: `sigmoid` (DPO), `hinge` (SLiC, arXiv 2305.10425), or `ipo` (arXiv 2310.12036), which compares means
            over the tokens of an answer.
        label_smoothing: Probability that a label is wrong, for `sigmoid` (cDPO, arXiv 2310.12036).
    """

    of_tokens = ("labels",)
    columns: ClassVar[Mapping[str, Column]] = {
        "prompt": Column("prompt", form="prompt"),
        "chosen": Column("answer", form="prompt", target=True),
        "rejected": Column("answer", form="prompt", target=True),
        "chosen_messages": Column("conversation", form="chosen_messages"),
        "rejected_messages": Column("conversation", form="chosen_messages", target=True),
    }
    pad: ClassVar[Mapping[str, int]] = {**Chat.pad, "reference": 0}
    metrics = ("accuracy",)
    extra_metrics = ("rewards/chosen", "rewards/rejected", "rewards/margins")
    outputs: ClassVar[Mapping[str, str] | None] = {"predictions": "class", "references": "class"}
    can_pack = False
    generates = False
    written_outputs: ClassVar[Mapping[str, str]] = {}
    refers = True
    is_tried = False  # a row is two sequences
    predicted: ClassVar[Mapping[str, str]] = {"text": "answer of the model"}
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {
            "prompt": "How often does the ferry go?",
            "chosen": "Twice a day, but for the weeks when the bay is frozen.",
            "rejected": "Often.",
        },
        {"prompt": "Is the bay wide?", "chosen": "Yes.", "rejected": "It is what it is."},
        {"prompt": "Does it freeze?", "chosen": "In winter, most years.", "rejected": "No idea, ask somebody else."},
    )

    def __init__(self, *, beta: float = 0.1, loss_type: LossType = "sigmoid", label_smoothing: float = 0.0):
        super().__init__(train_on="last")
        refuse_others({"loss_type": loss_type}, {"loss_type": get_args(LossType)}, place="task.args")
        if not beta > 0:
            raise UserError(f"task.args.beta: {beta}: it must be above 0")
        if not 0 <= label_smoothing < 0.5 or (label_smoothing and loss_type != "sigmoid"):
            raise UserError(
                f"task.args.label_smoothing: {label_smoothing}: it must be at least 0 and below 0.5, and 0 for "
                "other losses than sigmoid"
            )
        self.beta = beta
        self.loss_type = loss_type
        self.label_smoothing = label_smoothing

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "loss_type": self.loss_type}

    def logits_per_token(self, model_config: Any) -> int | None:
        """Return the vocabulary size, because the logits of all answers are in memory at once."""
        return count_vocabulary(model_config)

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Encode the two conversations of each row, `[2][T]`, the chosen one first; for a row to predict, `[1][T]`."""
        names = ("input_ids", "labels", "prompt", "length", "truncated", "fault")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for number, pair in enumerate(read_pairs(rows)):
            encoded = [self._encode_row({"messages": messages}, compares=number == 0) for messages in pair]
            chats, faults = [chat for chat, _ in encoded], [fault for _, fault in encoded if fault is not None]
            longest = max(len(chat.ids) for chat in chats)
            # Both conversations lose the same start of the prompt, so that the answers stay comparable.
            cut = max(0, min(longest - max_length, *(chat.prompt_length - 1 for chat in chats)))
            ids = [chat.ids[cut : cut + max_length] for chat in chats]
            answer_masks = [chat.is_answer[cut : cut + max_length] for chat in chats]
            columns["input_ids"].append(ids)
            columns["labels"].append(list(map(label_answers, ids, answer_masks)))
            columns["prompt"].append(chats[0].ids[: chats[0].prompt_length][-max_length:])
            columns["length"].append(len(ids) * max(map(len, ids)))
            columns["truncated"].append(longest > max_length)
            columns["fault"].append(next(iter(faults), None) or find_fault_of_pair(pair))
        return columns

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Stack the conversations of all rows, `[2 B, T]`, and the `reference` of each row, `[B, 2]`."""
        names = ("input_ids", "labels")
        sequences = [
            {name: row[name][place] for name in names} for row in rows for place in range(len(row["input_ids"]))
        ]
        batch = super().collate(sequences) | {"prompts": tuple(row["prompt"] for row in rows)}
        reference = {"reference": torch.tensor([row["reference"] for row in rows])} if "reference" in rows[0] else {}
        return batch | reference

    def count(self, batch: Batch) -> int:
        return len(batch["row_targets"]) // 2

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._sum_loss(self._compare(model, batch))

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Return the `tokens` of a generated answer to each prompt."""
        return {"tokens": self._write(model, batch)}

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Return the loss, and `predictions` `[B]`, 1 if the chosen answer is preferred, with `margins` `[B]`."""
        margins = self._compare(model, batch)
        return self._sum_loss(margins), compare_by(margins)

    def refer(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log probabilities of both answers, `[B, 2]`, in nats; for `ipo` the means over their tokens."""
        head, outputs = self._run(model, batch)
        positions, targets, lengths = self.find_targets(batch)
        nll = [negative_log_likelihood(logits, targets[tokens]) for tokens, logits in head.chunks(outputs[positions])]
        sums = torch.stack([row.sum() for row in torch.cat(nll).split(list(lengths))])
        if self.loss_type == "ipo":
            sums = sums / torch.tensor([max(length, 1) for length in lengths], device=sums.device)
        return -sums.view(-1, 2)

    def _compare(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log ratio of chosen and rejected answer, minus that of the initial model, in nats `[B]`."""
        if "reference" not in batch:
            raise UserError(
                "the task preference compares rows with the model before the first update, so it can evaluate the rows "
                "of data.validation and data.test alone"
            )
        now = self.refer(model, batch)
        chosen, rejected = (now - batch["reference"].to(now.dtype)).unbind(dim=1)
        margins = chosen - rejected
        for name, values in zip(self.extra_metrics, (chosen, rejected, margins), strict=True):
            self.log_metric(name, self.beta * values.sum(), count=len(values))
        return margins

    def _sum_loss(self, margins: Tensor) -> Tensor:
        if self.loss_type == "ipo":
            return (margins - 1 / (2 * self.beta)).square().sum()
        if self.loss_type == "hinge":
            return (1 - self.beta * margins).relu().sum()
        flipped = self.label_smoothing
        losses = (1 - flipped) * F.logsigmoid(self.beta * margins) + flipped * F.logsigmoid(-self.beta * margins)
        return -losses.sum()


def compare_by(margins: Tensor) -> dict[str, Tensor]:
    """Return the outputs of rows, from the margin of the chosen answer over the rejected one, `[B]`."""
    preferred = (margins > 0).long()
    return {"predictions": preferred, "references": torch.ones_like(preferred), "margins": margins}
