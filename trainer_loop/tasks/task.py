"""`Task`: one class says what a row is, how it is encoded and batched, what its loss is and what is predicted."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from trainer_loop.data.columns import RESERVED, Column
from trainer_loop.data.cut import widen
from trainer_loop.errors import UserError
from trainer_loop.metrics.logged import LogMetric
from trainer_loop.tasks.generation import Generation

Batch = dict[str, Any]
Rows = Mapping[str, Sequence[Any]]  # columns of equal length


class Task(ABC):
    """What is learned.

    A batch is a dict of tensors whose first dimension is the rows, `[B, ...]`; or packed rows, see `pack_rows`.

    A task that declares `columns` gets raw rows from any source, checked by the kinds of the columns, and encodes them.
    A task without `columns` takes rows as they are, such as tensors of a torch Dataset.

    A subclass implements `loss` and `predict`, and `count` if the targets are neither the labels that are not -100 nor
    the rows.

    Attributes:
        auto_model: The class of transformers that loads the model; None if the model is any `nn.Module`.
        auto_processor: AutoTokenizer if rows are tokens, AutoImageProcessor if they are images, else None.
        columns: What the task reads of a raw row. `data.columns` maps these names to the user's.
        pad: Columns of the batch that are for the task alone, and what they are padded with.
        of_tokens: Columns of the batch, beside the tokenizer's, that have a number for each token. None: that is not
            known, and a batch is never wider than its longest row; see `may_widen`.
        metrics: Metrics that are computed if `evaluate.metrics` is empty.
        extra_metrics: Names of the numbers that `loss` and `loss_and_predict` pass to `log_metric`.
        outputs: Kinds of what `predict` returns, or `merge` if the task has one, by name: a shipped metric compares the
            same kinds, see metrics/values.py. None: the kinds are not known, and any metric may be named.
        written_outputs: Kinds of outputs that come beside these where `evaluate.generate.max_new_tokens` is set.
        peft_type: peft's name for the task, so that others can load an adapter without trainer_loop.
        can_pack: `loss`, `count` and `predict` accept batches of `pack_rows`.
        rows_at_head: The model's head sees one row at a time; false: each token by itself.
        padding_sides: Sides that the task accepts. The first one that does not change the model's answers is used.
        reads_end: The heads of encoder-decoder models look for the end token of each row.
        continues: One text is answered with its continuation.
        generates: The task writes texts, by its `generation`.
        draws: `collate` chooses at random. Each of its rows then has a seed as `draw`: in training a function of the
            run's seed, the step and the row, and in an evaluation of the row.
        mixes: `collate` mixes each row in training with another. A row then has that training row as `partner`, by a
            function of the run's seed, the step and the row, and a seed of the step as `mixing`.
        joins_texts: `encode` makes rows of several texts, which have no weight of their own.
        tunes: The task chooses something by the validation rows, see `tune`. A checkpoint holds it.
        scales: The task wants the numbers of all training rows before the first, see `scale_by`.
        keeps_state: A checkpoint holds something else of the task, see `state_dict`.
        refers: The task compares the model with what it was before the first update, see `refer`.
        is_tried: The model answers rows that `encode` makes of the inputs, and is tried on a few made-up ones first.
        problem_type: transformers' name for what the head learns, by which its pipelines answer.
        pipeline_tag: The hub's name for what the model does.
        predicted: What each column holds that `decode` makes of rows to predict, for docs.
        example: A few raw rows, for docs and for tests.
    """

    auto_model: ClassVar[str | None] = None
    auto_processor: ClassVar[str | None] = None
    columns: ClassVar[Mapping[str, Column]] = {}
    pad: ClassVar[Mapping[str, int]] = {"labels": -100}
    of_tokens: ClassVar[tuple[str, ...] | None] = None
    metrics: ClassVar[tuple[str, ...]] = ()
    extra_metrics: tuple[str, ...] = ()
    outputs: ClassVar[Mapping[str, str] | None] = None
    written_outputs: ClassVar[Mapping[str, str]] = {}
    peft_type: ClassVar[str | None] = None
    can_pack: ClassVar[bool] = False
    rows_at_head: ClassVar[bool] = True
    padding_sides: ClassVar[tuple[str, ...]] = ("right",)
    reads_end: ClassVar[bool] = False
    continues: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    draws: bool = False
    mixes: bool = False
    joins_texts: bool = False
    tunes: bool = False
    scales: bool = False
    keeps_state: bool = False
    refers: ClassVar[bool] = False
    is_tried: ClassVar[bool] = True
    problem_type: ClassVar[str | None] = None
    pipeline_tag: ClassVar[str | None] = None
    predicted: ClassVar[Mapping[str, str]] = {}
    example: ClassVar[Sequence[Mapping[str, Any]]] = ()

    # `bind` sets these.
    processor: Any = None
    label_names: Sequence[str] | None = None
    packs: bool = False
    padding_side: str = "right"
    generation: Generation = Generation()  # from the section `evaluate.generate`
    _width_step: int = 1  # tokens, see `use_widths`
    _longest: int = 0
    _log: LogMetric | None = None  # where `log_metric` puts its numbers at present; None: nowhere
    _end: tuple[int, int, int] | None = None  # the end token, how many a text has, and a pair

    @property
    def tokenizer(self) -> Any:
        """The processor of a task on texts."""
        return self.processor

    def list_outputs(self) -> Mapping[str, str] | None:
        """What metrics can compare: `outputs`, and `written_outputs` where an evaluation writes these."""
        if self.outputs is None or self.generation.max_new_tokens is None:
            return self.outputs
        return {**self.outputs, **self.written_outputs}

    @property
    def tuned(self) -> dict[str, Any]:
        """Arguments of the task as `tune` or `scale_by` chose them; an exported model has these. Empty before that."""
        return {}

    @property
    def has_state(self) -> bool:
        """Whether a checkpoint holds something of the task."""
        return self.tunes or self.keeps_state

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of a task that `has_state`."""
        return self.tuned

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned: arguments by name."""
        for name, value in state.items():
            setattr(self, name, value)

    @property
    def example_texts(self) -> Sequence[str]:
        """Texts that the command for a prediction shows, for the columns that are read."""
        return ("I am super delighted.", "I am delighted.")

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end what the model writes; the exported model stops at them. Empty: those that it has."""
        return []

    @property
    def has_tokens(self) -> bool:
        """Whether rows are tokens, whose number limits a microbatch."""
        return self.auto_processor == "AutoTokenizer"

    @property
    def writes(self) -> bool:
        """Whether the model writes texts."""
        return self.auto_model in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")

    @property
    def frames_texts(self) -> bool:
        """Whether a tokenizer that is trained for the task puts special tokens around a text, and has no end token."""
        return not self.writes

    def bind(
        self,
        processor: Any,
        *,
        label_names: Sequence[str] | None = None,
        packs: bool = False,
        end_token: int | None = None,
    ) -> None:
        """Give the task what its rows are encoded and batched with.

        Args:
            processor: The tokenizer or processor.
            label_names: The names of the classes, by their ids.
            packs: Rows are laid end to end instead of padded.
            end_token: An id that must be in each row as often as in any other, if the task `reads_end`.
        """
        self.processor = processor
        self.label_names = label_names
        self.packs = packs
        self.padding_side = self.padding_sides[0]
        self._end = None
        if end_token is not None and self.reads_end:
            one, two = (processor(*texts)["input_ids"].count(end_token) for texts in (("a",), ("a", "a")))
            self._end = (end_token, one, two)

    def fit_positions(self, positions: int | None) -> list[str]:
        """Limit what a decoder reads to the model's number of positions; None: any number.

        Returns:
            What is wrong with arguments that ask for more.
        """
        return []

    def use_widths(self, step: int, *, longest: int) -> None:
        """Make batches as wide as the next multiple of `step` tokens, but no wider than `longest` because of it."""
        assert self.may_widen, "columns that must be as wide are known"
        self._width_step, self._longest = step, longest

    @property
    def may_widen(self) -> bool:
        """Whether a batch may be wider than its longest row: it is known which columns then are.

        Not if a subclass has an `encode` or a `collate` of its own, and does not say `of_tokens` again.
        """
        said, *others = (
            next(kind for kind in type(self).__mro__ if name in vars(kind))
            for name in ("of_tokens", "encode", "collate")
        )
        return self.of_tokens is not None and all(issubclass(said, other) for other in others)

    def widen(self, tokens: int, *, longest: int) -> int:
        """How wide a batch is whose longest row has so many tokens; see `use_widths`."""
        return int(widen(np.array(tokens), step=self._width_step, longest=longest))

    def scale_by(self, numbers: np.ndarray) -> None:
        """Take what the task `scales` by from the numbers of all training rows, `[N]`, or `[N, K]` for several."""
        raise NotImplementedError

    def use_padding(self, side: str) -> None:
        """Pad on this side from now on. If the task accepts both, whoever loads the exported tokenizer does so too."""
        self.padding_side = side
        if len(self.padding_sides) > 1:
            self.tokenizer.padding_side = side

    # ------------------------------------------------------------------------------------------- from rows to batches

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Encode raw rows.

        Args:
            rows: The task's columns by their own names; labels are class ids. Optional columns may be missing, and so
                are targets of rows that are to be predicted.
            max_length: The most tokens of an encoded row.

        By default the texts are tokenised; a task without a tokenizer gets its rows as they are.

        Returns:
            Columns of equal length. These names have a meaning, and no model sees the last four of them:
            `label`: the class id of each row, which is that of its raw row if missing; a batch has it as `labels`.
            `length`: the tokens of each row; if missing, those of `input_ids`, else 1.
            `source`: the position in `rows` that each row begins in, ascending; needed if there are more or fewer rows
            than given.
            `truncated`: true for a row that was cut.
            `fault`: why the model could not answer a row, as the rest of a sentence; None if it can.
        """
        if self.processor is None:
            if clash := sorted(rows.keys() & set(RESERVED)):
                told = f"declares the column {clash[0]}, a name that `encode` has for something else; give it another"
                raise UserError(f"task {type(self).__name__} {told}")
            return {name: list(values) for name, values in rows.items()}
        texts = [list(rows[name]) for name, column in self.columns.items() if column.kind == "text" and name in rows]
        if len(texts) not in (1, 2):
            raise UserError(f"task {type(self).__name__} reads {len(texts)} columns of texts; let it override `encode`")
        encoded = self.tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        # The tokenizer knows what it cut off: to tokenise without a limit, and count, would take twice the time.
        columns = {**encoded, "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings]}
        if self._end is not None:
            token, expected = self._end[0], self._end[len(texts)]
            name = self.tokenizer.convert_ids_to_tokens(token)
            fault = (
                f"spells out the end token {name}, which the model's head reads; write it otherwise, or remove the row"
            )
            columns["fault"] = [None if ids.count(token) == expected else fault for ids in encoded["input_ids"]]
        return columns

    def encode_alone(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Encode rows to predict, each by itself; for a task whose `encode` joins rows."""
        return self.encode(rows, max_length=max_length)

    def encode_for_evaluation(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Encode the rows of validation and test sets; for a task that reads them otherwise than in training."""
        return self.encode(rows, max_length=max_length)

    def settings(self) -> dict[str, Any]:
        """What else of the task changes the results of encoding; part of the cache's key."""
        return {} if self._end is None else {"end": list(self._end)}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Encoded rows -> one batch on the CPU.

        The tokenizer pads its own columns, `[B, T]`, with an `attention_mask`. Other lists of numbers are padded with
        what `pad` says, else 0, `[B, L]`; numbers are stacked, `[B]`; anything else stays a list. Rows of a task
        without `columns` are stacked entry by entry, `[B, ...]`. The `draw` of a row is left out.
        """
        if self.draws:
            rows = [{name: value for name, value in row.items() if name != "draw"} for row in rows]
        if not self.columns and not self.has_tokens:
            stacked: Batch = default_collate(rows)
            return stacked
        if self.packs:
            batch = pack_rows(rows)
            if "label" in rows[0]:
                fill = self.pad.get("labels", 0)
                batch["labels"] = pad_lists([row["label"] for row in rows], fill=fill)
            return batch
        own, batch, tokens, width = set(), {}, 0, 0
        if self.has_tokens:
            own = {*self.tokenizer.model_input_names, "special_tokens_mask"} - self.pad.keys()
            features = [{name: value for name, value in row.items() if name in own} for row in rows]
            tokens = max(len(row["input_ids"]) for row in rows)
            width = self.widen(tokens, longest=self._longest)
            side = self.padding_side
            padded = self.tokenizer.pad(
                features, "max_length", max_length=width, return_tensors="pt", padding_side=side
            )
            batch = dict(padded)
        for name in (name for name in rows[0] if name not in own):
            values = [row[name] for row in rows]
            name = "labels" if name == "label" else name
            is_numbers = isinstance(values[0], (int, float, list))
            fill = self.pad.get(name, 0)
            if not is_numbers:
                batch[name] = values
                continue
            at_least = width if name in (self.of_tokens or ()) else 0
            side = self.padding_side if max(map(_length, values)) == tokens else "right"
            batch[name] = pad_lists(values, fill=fill, at_least=at_least, side=side)
        return batch

    def model_inputs(self, batch: Batch) -> Batch:
        """What the model is called with: everything but the columns of `pad`, such as the labels."""
        return {name: value for name, value in batch.items() if name not in self.pad}

    # --------------------------------------------------------------------------------------------- loss and prediction

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss **summed** over the targets of the batch, `[]`. The loop alone divides."""

    def count(self, batch: Batch) -> int:
        """How many targets the loss of this batch sums over.

        By default the `labels` that are not -100, if these are integers; else the rows, by the first of the tensors.
        """
        labels = batch.get("labels")
        if labels is not None and not labels.is_floating_point():
            return int((labels != -100).sum())
        return next(len(value) for value in batch.values() if isinstance(value, Tensor))

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """What metrics compare, one entry for each row, by name: `predictions` and `references`.

        Each is a tensor `[B, ...]`, or a list of B tensors of unlike lengths. Without labels there are no references.
        """

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Both of the above; a task that can share one forward pass between them overrides it."""
        loss = self.loss(model, batch)
        with self.logging_to(None):  # what both compute is logged once
            return loss, self.predict(model, batch)

    def log_metric(self, name: str, value: Tensor, *, count: float = 1) -> None:
        """Log a part of the loss, or another number beside it, from `loss` or `loss_and_predict`.

        metrics.jsonl gets its mean: in training since the row before, in an evaluation over all rows of the set.
        Whoever calls the task outside of a run logs nothing.

        Args:
            name: In `extra_metrics`, so that all processes know it.
            value: A sum over `count` rows or targets, `[]`; it stays on its device.
            count: How many these are, 0 if the batch has none of them.
        """
        if self._log is not None:
            self._log(name, value, count=count)

    @contextmanager
    def logging_to(self, log: LogMetric | None) -> Iterator[None]:
        """Let `log_metric` pass its numbers to `log` until the block ends; None: they are dropped."""
        before, self._log = self._log, log
        try:
            yield
        finally:
            self._log = before

    def rate_rows(self, outputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """How sure the model is of each row, `[B]` by name, for predictions and the report.

        By default, where `outputs` has classes and their `probabilities`: the `probability` of the predicted class, and
        the `reference_probability`, that of the right one.

        Args:
            outputs: What `predict` or `loss_and_predict` returned for a batch, with references.
        """
        kinds, probabilities = self.list_outputs() or {}, outputs.get("probabilities")
        if kinds.get("predictions") != "class" or probabilities is None or getattr(probabilities, "ndim", 2) != 2:
            return {}
        return {
            "probability": _take(probabilities, outputs["predictions"]),
            "reference_probability": _take(probabilities, outputs["references"]),
        }

    def refer(self, model: nn.Module, batch: Batch) -> Tensor:
        """What a task that `refers` wants to know of each row from the model before the first update, `[B, K]`.

        `collate` then gets it as a list, the column `reference` of the row.
        """
        raise NotImplementedError

    def merge(self, parts: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> dict[str, Any]:
        """What metrics compare of one raw row, from what `predict` returned for the rows that `encode` made of it.

        A task overrides it if `encode` makes several rows of one, such as windows over a long text, or if its metrics
        compare texts.

        Args:
            parts: The outputs of each encoded row, in their order, as NumPy arrays and numbers.
            row: The raw row, by the task's columns. A target is missing if it is not known.

        Returns:
            Values of any kind, by name; without a target there are no `references`.
        """
        (only,) = parts
        return dict(only)

    @property
    def merges(self) -> bool:
        """Whether the task has a `merge` of its own."""
        return type(self).merge is not Task.merge

    def tune(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Choose what the predictions depend on, such as a threshold.

        It is called with each evaluation of the validation rows, and at last with that of the weights that are
        exported, before the test rows are scored.

        Args:
            outputs: What metrics compare, of all rows, `[N, ...]` by name.

        Returns:
            The same by what was chosen.
        """
        return outputs

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """The prediction of one row for people, as JSON.

        Args:
            outputs: What `predict` returned for the row, as NumPy arrays and numbers; or what `merge` returned.
            row: The raw row, by the task's columns.
        """
        return {name: value.tolist() for name, value in outputs.items() if name != "references"}

    def logits_per_token(self, model_config: Any) -> int | None:
        """How many logits of each token are held at once, if they, not the activations, fill the memory."""
        return None


class OnePassTask(Task):
    """A task whose loss and predictions follow from the same logits: an evaluation runs the model once for both.

    A subclass implements `_sum_loss` and `_make_outputs`.
    """

    def _logits(self, model: nn.Module, batch: Batch) -> Any:
        """What the model answers. Labels stay outside: most heads would turn them into a mean over the microbatch."""
        return model(**self.model_inputs(batch)).logits

    @abstractmethod
    def _sum_loss(self, logits: Any, batch: Batch) -> Tensor:
        """See `Task.loss`."""

    @abstractmethod
    def _make_outputs(self, logits: Any, batch: Batch) -> dict[str, Any]:
        """See `Task.predict`."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._sum_loss(self._logits(model, batch), batch)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        return self._make_outputs(self._logits(model, batch), batch)

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        logits = self._logits(model, batch)
        return self._sum_loss(logits, batch), self._make_outputs(logits, batch)


def pack_rows(rows: list[dict[str, Any]]) -> Batch:
    """Rows laid end to end without padding: their columns and `position_ids` `[1, T]`, T the tokens of all.

    `row_lengths` are their B lengths, as plain numbers; `row_ends` the running sums, `[B + 1]` int32, from 0.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    batch: Batch = {
        name: torch.tensor([list(chain.from_iterable(row[name] for row in rows))])
        if isinstance(values, (list, tuple))
        else torch.tensor([row[name] for row in rows])
        for name, values in rows[0].items()
        if name != "label"
    }
    batch["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    batch["row_lengths"] = tuple(lengths)
    batch["row_ends"] = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return batch


def pad_lists(values: Sequence[Any], *, fill: int, at_least: int = 0, side: str = "right") -> Tensor:
    """Numbers as `[B]`; lists as `[B, L]`, padded on their `side` with `fill`, L the longest and `at_least` so many."""
    if not isinstance(values[0], (list, tuple)):
        return torch.tensor(values)
    longest = max(*map(len, values), at_least)
    padded = []
    for value in values:
        filling = [fill] * (longest - len(value))
        padded.append([*filling, *value] if side == "left" else [*value, *filling])
    return torch.tensor(padded, dtype=None if longest else torch.long)  # of an empty list torch would make floats


def _take(probabilities: Tensor | Sequence[Tensor], classes: Tensor) -> Tensor:
    """Of each row that of its class, `[B]`. probabilities: `[B, C]`, or a list of B tensors. classes: `[B]`."""
    if isinstance(probabilities, Tensor):
        return probabilities.gather(1, classes[:, None].clamp(0, probabilities.shape[1] - 1))[:, 0]
    return torch.stack([row[number] for row, number in zip(probabilities, classes.tolist(), strict=True)])


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (list, tuple)) else 0
