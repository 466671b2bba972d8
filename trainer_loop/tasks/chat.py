"""Supervised fine-tuning on conversations: learn the answers of the assistant."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from trainer_loop.components import refuse_others
from trainer_loop.data.columns import Column
from trainer_loop.data.conversations import Message, read_messages, read_text, read_tools
from trainer_loop.errors import UserError
from trainer_loop.tasks.chat_template import (
    ChatTemplate,
    EncodedChat,
    Spans,
    TemplateFault,
    read_code_of_conversations,
)
from trainer_loop.tasks.generation import cut_at_end
from trainer_loop.tasks.language_model import LanguageModel, count_labels, select_targets
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.task import Batch, Rows, pad_lists


class Chat(LanguageModel):
    """A row is a conversation, `messages`, or a `prompt` with its `completion`. Targets are the tokens of the answers.

    The chat template of the tokenizer, or that of `model.chat_template`, formats the conversation. An answer ends with
    the token at which the model stops. With `evaluate.generate.max_new_tokens`, evaluations also generate an answer to
    each row, which metrics on texts compare with the last answer of the row.

    Args:
        train_on: The answers that are learned: `all` of a conversation, or only the `last`.
        spans: How the answers are found: by the `marks` of the template, `{% generation %}`, or by rendering `prefixes`
            of the conversation. `auto`: by marks if the template has them, compared with prefixes for the first row.
        loss_function: `(logits [N, V], tokens [N]) -> sum over tokens, []`.
    """

    auto_model = "AutoModelForCausalLM"
    of_tokens = ("labels",)
    columns: ClassVar[Mapping[str, Column]] = {
        "messages": Column("conversation", form="messages"),
        "prompt": Column("prompt", form="prompt"),
        "context": Column("text", form="prompt", optional=True, blank=True),
        "completion": Column("answer", form="prompt", target=True),
        "tools": Column("tools", optional=True),
    }
    pad: ClassVar[Mapping[str, int]] = {"labels": -100, "row_targets": 0, "prompt": 0, "prompts": 0}
    peft_type = "CAUSAL_LM"
    pipeline_tag = "text-generation"
    generates = True
    predicted: ClassVar[Mapping[str, str]] = {
        "text": "the answer of the model",
        "loss": "instead of `text`, if the file has the column `completion` and neither the command nor the run sets "
        "`max_new_tokens`: mean loss of the completion, in nats per token",
        "perplexity": "exponential of `loss`",
    }
    written_outputs: ClassVar[Mapping[str, str]] = {"predictions": "text", "references": "texts"}
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {
            "messages": [
                {"role": "system", "content": "Answer in a word."},
                {"role": "user", "content": "How often does the ferry go?"},
                {"role": "assistant", "content": "Twice."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "Is the bay wide?"},
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": "Does it freeze?"},
                {"role": "assistant", "content": "In winter, most years."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "Who walks across?"},
                {"role": "assistant", "content": "Those who miss the ferry."},
            ]
        },
    )

    def __init__(
        self,
        *,
        train_on: Literal["all", "last"] = "all",
        spans: Spans = "auto",
        loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    ):
        super().__init__(loss_function=loss_function)
        self._positions: int | None = None
        allowed = {"train_on": ("all", "last"), "spans": get_args(Spans)}
        refuse_others({"train_on": train_on, "spans": spans}, allowed, place="task.args")
        self.train_on = train_on
        self.spans = spans

    def bind(self, processor: Any, **others: Any) -> None:
        """See `Task.bind`. Raises UserError if there is no chat template, or it lacks marks that `spans` requires."""
        super().bind(processor, **others)
        self._template = ChatTemplate.of(processor, self.spans)
        if self.spans == "marks" and not self._template.has_marks:
            raise UserError("task.args.spans: marks: the chat template has no {% generation %}; set it to prefixes")
        if self.packs and self.generation.max_new_tokens is not None:
            raise UserError(
                "evaluate.generate.max_new_tokens: a model of packed rows writes no texts; set it to null, or "
                "model.packing=false"
            )
        ends = self._template.find_ends()
        if ends is None:
            raise UserError(
                "model.chat_template: the template ends an answer with no special token, so the model would not learn "
                "to stop; name a file with one that does, such as {{ eos_token }} behind an answer"
            )
        self._ends = ends

    def settings(self) -> dict[str, Any]:
        return {"train_on": self.train_on, "spans": self.spans, "code": read_code_of_conversations()}

    @property
    def example_texts(self) -> Sequence[str]:
        return ("How often does the ferry go?", "The ferries of the bay, and their times.")

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Tokenise each conversation, truncated to `max_length`. `labels` are the tokens of answers, else -100.

        `prompt` has the tokens before the last answer, at most the last `max_length` of them. If a conversation does
        not end with an answer, the header of an answer is appended.
        """
        names = ("input_ids", "labels", "prompt", "truncated", "fault")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for number, row in enumerate(_iterate(rows)):
            chat, fault = self._encode_row(row, compares=number == 0)
            columns["input_ids"].append(chat.ids[:max_length])
            columns["labels"].append(label_answers(chat.ids[:max_length], chat.is_answer[:max_length]))
            columns["prompt"].append(chat.ids[: chat.prompt_length][-max_length:])
            columns["truncated"].append(len(chat.ids) > max_length)
            columns["fault"].append(fault)
        return columns

    def _encode_row(self, row: Mapping[str, Any], *, compares: bool) -> tuple[EncodedChat, str | None]:
        """Return the encoded conversation, and its fault or None. compares: see `ChatTemplate.encode`."""
        try:
            prompt, answer = _read_row(row)
            tools = read_tools(row["tools"]) if "tools" in row else None
            chat = self._template.encode(prompt + answer, tools, only_last=self.train_on == "last", compares=compares)
        except TemplateFault as error:
            return EncodedChat([], [], 0), str(error)
        return chat, None

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Make a batch. `row_targets` are the numbers of targets of the rows; `prompts` are the tokens to answer."""
        prompts = tuple(row["prompt"] for row in rows if "prompt" in row)
        batch = super().collate([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
        return {**batch, "row_targets": count_labels(rows), "prompts": prompts}

    def find_targets(self, batch: Batch) -> tuple[Tensor, Tensor, Sequence[int]]:
        """Return the tokens of answers as the targets of the tokens before them."""
        return select_targets(batch["labels"].flatten().roll(-1), batch["row_targets"])

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Return the outputs of `loss_and_predict`, and the `tokens` of a generated answer to each row."""
        outputs = self.loss_and_predict(model, batch)[1]
        return outputs if "tokens" in outputs or self.packs else outputs | {"tokens": self._write(model, batch)}

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        loss, outputs = super().loss_and_predict(model, batch)
        return loss, outputs | ({"tokens": self._write(model, batch)} if self._writes_in_evaluation else {})

    def merge(self, parts: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the generated answer as `predictions`, and the last answer of the row in a list as `references`."""
        (part,) = parts
        if not self._writes_in_evaluation and "tokens" not in part:
            return dict(part)
        outputs = {name: value for name, value in part.items() if name != "tokens"}
        answer = self.tokenizer.decode(cut_at_end(part["tokens"].tolist(), self._ends), skip_special_tokens=True)
        references = [read_text(message.get("content")) for message in _read_row(row)[1][-1:]]
        return outputs | {"predictions": answer.strip(), "references": references}

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the generated answer as `text`, or `loss` and `perplexity` of the answers of the row."""
        is_generated = isinstance(outputs["predictions"], str)
        return {"text": outputs["predictions"]} if is_generated else super().decode(outputs, row)

    def fit_positions(self, positions: int | None) -> list[str]:
        self._positions = positions
        self.generation = replace(self.generation, positions=None if positions is None else positions // 2)
        length = self.generation.max_new_tokens
        if positions is None or length is None or length < positions:
            return []
        return [f"evaluate.generate.max_new_tokens: {length}: it must be below {positions}, the positions of the model"]

    @property
    def end_tokens(self) -> list[int]:
        return sorted(self._ends)

    @property
    def _writes_in_evaluation(self) -> bool:
        return self.generation.max_new_tokens is not None

    def _write(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Generate an answer to the prompt of each row. Long prompts are cut so that the answer fits."""
        max_prompt = None if self._positions is None else self._positions - self.generation.length
        prompts = [row[-max_prompt:] if max_prompt else row for row in batch["prompts"]]
        pad = self.tokenizer.pad_token_id
        ids = pad_lists(prompts, fill=pad, side="left").to(batch["input_ids"].device)
        mask = pad_lists([[1] * len(prompt) for prompt in prompts], fill=0, side="left").to(ids.device)
        inputs = {"input_ids": ids, "attention_mask": mask}
        tokens = self.generation.write(model, inputs, pad=pad)
        return list(tokens[:, ids.shape[1] :])


def label_answers(ids: Sequence[int], is_answer: Sequence[bool]) -> list[int]:
    """Return the tokens of answers, else -100. The first token is never a target."""
    labels = [token if is_one else -100 for token, is_one in zip(ids, is_answer, strict=True)]
    return [-100, *labels[1:]]


def _iterate(rows: Rows) -> Iterator[dict[str, Any]]:
    names = list(rows)
    return (dict(zip(names, values, strict=True)) for values in zip(*rows.values(), strict=True))


def _read_row(row: Mapping[str, Any]) -> tuple[list[Message], list[Message]]:
    """Return the messages before the answer of a row, and the messages of the answer. Either list may be empty.

    Raises:
        TemplateFault: The row has a context, but no user message that it belongs to.
    """
    if "messages" in row:
        messages = read_messages(row["messages"], role="user")
        end = len(messages) - (messages[-1]["role"] == "assistant")
        return messages[:end], messages[end:]
    prompt = read_messages(row.get("prompt", []), role="user")
    if row.get("context"):
        if prompt[-1]["role"] != "user":
            raise TemplateFault("has a context, and a prompt that ends with no message of the user")
        prompt[-1] = {**prompt[-1], "content": f"{read_text(prompt[-1].get('content'))}\n\n{row['context']}"}
    return prompt, read_messages(row["completion"], role="assistant") if "completion" in row else []
