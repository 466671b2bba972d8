"""What the loop asks of a task (`Task`), and defaults for those on rows of any kind and on texts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

Batch = dict[str, Any]


class Task(Protocol):
    """What is learnt. A batch is a dict of tensors whose first dimension is the rows, `[B, ...]`; or packed rows."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss **summed** over the targets of the batch, `[]`. The loop alone divides."""
        ...

    def count(self, batch: Batch) -> int:
        """How many targets the loss of this batch sums over."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What metrics compare, one entry a row: `predictions` and `references`, `[B]` or `[B, ...]`."""
        ...

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Both of the above; a task that can share one forward pass between them overrides it."""
        ...

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Encoded rows -> one padded batch, on the CPU."""
        ...


def pack_rows(rows: list[dict[str, Any]]) -> Batch:
    """Rows laid end to end without padding: their columns and `position_ids` `[1, T]`, T the tokens of all.

    `row_lengths` are their B lengths, as plain numbers; `row_ends` the running sums, `[B + 1]` int32, from 0.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    batch: Batch = {
        name: torch.tensor([list(chain.from_iterable(row[name] for row in rows))])
        for name in rows[0]
        if name != "label"
    }
    batch["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    batch["row_lengths"] = tuple(lengths)
    batch["row_ends"] = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return batch


class RowTask(ABC):
    """Defaults for a task whose rows are tensors or numbers already, and whose model may be any `nn.Module`.

    A subclass gives `loss` and `predict`, and `count` where a target is something else than a row.
    """

    default_metrics: tuple[str, ...] = ()
    # Kinds of what `predict` returns, by name: shipped metrics compare the same kinds, see metrics/values.py.
    # None: they are found out when `predict` is called, and any metric may be named.
    outputs: ClassVar[Mapping[str, str] | None] = None

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Task`."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `Task`."""

    def count(self, batch: Batch) -> int:
        """The rows of the batch, by the first of its tensors."""
        return next(len(value) for value in batch.values() if isinstance(value, Tensor))

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(model, batch), self.predict(model, batch)

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Each entry of the rows, stacked: `[B, ...]`."""
        batch: Batch = default_collate(rows)
        return batch


class TextTask(RowTask):
    """Defaults for a task on texts: which columns it reads, how it encodes and pads them, which model it needs.

    A subclass gives `loss`, `count` and `predict`; the rest is here to be overridden one piece at a time.
    """

    model_class: str = "AutoModel"  # name of a class in transformers
    needs_label: bool = False
    adapter_type: str | None = None  # what peft calls this task, so that others can load an adapter without us
    takes_pairs: bool = True
    can_pack: bool = False  # loss, count and predict know batches of `pack_rows`
    rows_at_head: bool = True  # the model's head sees one row at a time; false: every token for itself
    padding_sides: tuple[str, ...] = ("right",)  # that the task can do with; the first that suits the model is taken
    reads_end: bool = False  # heads of encoder-decoder models look for the end token of each row

    padding_side: str = "right"  # this and the next: set by `bind`
    _end: tuple[int, int, int] | None = None  # the end token, how many a text has, and a pair

    def __init__(self) -> None:
        self.tokenizer: Any = None  # this and the next: set by `bind`
        self.packs = False

    def bind(self, tokenizer: Any, *, packs: bool = False, end_token: int | None = None) -> None:
        """Give the task the tokenizer that its rows are encoded and padded with.

        Args:
            packs: rows are laid end to end instead of padded.
            end_token: id that must be in each row as often as in any other, where the task `reads_end`.
        """
        self.tokenizer = tokenizer
        self.packs = packs
        self.padding_side = self.padding_sides[0]
        self._end = None
        if end_token is not None and self.reads_end:
            one, two = (tokenizer(*texts)["input_ids"].count(end_token) for texts in (("a",), ("a", "a")))
            self._end = (end_token, one, two)

    def use_padding(self, side: str) -> None:
        """Pad on this side from now on. Whoever is given the tokenizer later does so too, where there is a choice."""
        self.padding_side = side
        if len(self.padding_sides) > 1:
            self.tokenizer.padding_side = side

    def logits_per_token(self, model_config: Any) -> int | None:
        """How many logits of every token are held at once, where they, not the activations, fill the memory."""
        return None

    def settings(self) -> dict[str, Any]:
        """Whatever of the task changes what `encode` returns or `find_faults` refuses; in the token cache's key."""
        return {} if self._end is None else {"end": list(self._end)}

    def find_faults(self, encoded: Mapping[str, Sequence[Any]], *, are_pairs: bool) -> dict[int, str]:
        """Texts that the model could not answer: position in the batch that `encode` was given -> the reason."""
        if self._end is None:
            return {}
        token, one, two = self._end
        expected = two if are_pairs else one
        reason = f"spells out the end token {self.tokenizer.convert_ids_to_tokens(token)}, which the model's head reads"
        return {
            position: f"{reason}; write it otherwise, or remove the row"
            for position, ids in enumerate(encoded["input_ids"])
            if ids.count(token) != expected
        }

    def encode(self, texts: list[str], pairs: list[str] | None, *, max_length: int) -> dict[str, list[Any]]:
        """Tokenise a batch of texts (with their second texts) -> columns of equal length.

        `input_ids` is always among them. A task may return another number of rows than it was given;
        it then says so with a column `source`: for every row the position of the text it begins in.
        `truncated`, which a task may leave out, is true for a text that was cut; no model sees either.
        """
        encoded = self.tokenizer(texts, pairs, truncation=True, max_length=max_length, return_attention_mask=False)
        # The tokenizer knows what it cut off: to tokenise without a limit, and count, would take twice the time.
        return {**encoded, "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings]}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Pad to the longest row: `input_ids`, `attention_mask` `[B, T]`; `label` becomes `labels` `[B]`."""
        if self.packs:
            batch = pack_rows(rows)
        else:
            features = [{name: value for name, value in row.items() if name != "label"} for row in rows]
            batch = dict(self.tokenizer.pad(features, return_tensors="pt", padding_side=self.padding_side))
        if rows and "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        return batch

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """See `Task`."""
