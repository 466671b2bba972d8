"""`Task`: one class defines the columns of a row, its encoding, the batch, the loss and the predictions."""

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
    """Base class of tasks.

    A batch is a dict of tensors whose first dimension is the rows, `[B, ...]`; or packed rows, see `pack_rows`.

    A task that declares `columns` gets raw rows from any source, checked by the kinds of the columns, and encodes them.
    A task without `columns` takes rows as they are, such as tensors of a torch Dataset.

    A subclass implements `loss` and `predict`. It implements `count` if the targets are neither the labels that are not
    -100 nor the rows.

    Attributes:
        auto_model: The auto class of transformers that loads the model; None if the model is any `nn.Module`.
        auto_processor: AutoTokenizer if rows are tokens, AutoImageProcessor if they are images, else None.
        columns: The columns of a raw row that the task reads. `data.columns` maps these names to the user's.
        pad: Columns of the batch that the model does not get, and their padding values.
        of_tokens: Columns of the batch with a number for each token, in addition to those of the tokenizer. None: they
            are unknown, and a batch is never wider than its longest row; see `may_widen`.
        metrics: Default metrics, used if `evaluate.metrics` is empty.
        extra_metrics: Names of the metrics that `loss` and `loss_and_predict` pass to `log_metric`.
        outputs: Kinds of the outputs of `predict`, or of `merge` if the task has one, by name. Shipped metrics compare
            these kinds, see metrics/values.py. None: the kinds are unknown, and any metric is allowed.
        written_outputs: Kinds of additional outputs if `evaluate.generate.max_new_tokens` is set.
        peft_type: peft's name for the task, so that others can load an adapter without trainer_loop.
        can_pack: `loss`, `count` and `predict` accept batches of `pack_rows`.
        rows_at_head: The model's head sees one row at a time; false: each token by itself.
        padding_sides: Sides that the task accepts. The first one that does not change the model's outputs is used.
        reads_end: The head of an encoder-decoder model reads the end token of each row.
        continues: `predict` continues a single text.
        generates: The task generates texts, with the options `generation`.
        draws: `collate` makes random choices. Each row then has a seed `draw`, a function of the run's seed, the step
            and the row in training, and of the row in an evaluation.
        mixes: `collate` mixes each training row with another one. A row then has this other row as `partner`, chosen by
            the run's seed, the step and the row, and a seed of the step as `mixing`.
        joins_texts: `encode` joins several texts into a row. Such texts cannot have weights.
        tunes: The task chooses a parameter on the validation rows, see `tune`. Checkpoints save it.
        scales: The task needs the numbers of all training rows before training, see `scale_by`.
        keeps_state: Checkpoints save other state of the task, see `state_dict`.
        refers: The task compares the model with the model before the first update, see `refer`.
        is_tried: Before training, the model is tried on a few made-up rows of `encode`.
        problem_type: transformers' `problem_type`, which its pipelines use.
        pipeline_tag: The hub's name for the use of the model.
        predicted: Description of each column that `decode` returns, for docs.
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
    _width_step: int = 1  # in tokens, see `use_widths`
    _longest: int = 0
    _log: LogMetric | None = None  # receives the metrics of `log_metric`; None: they are dropped
    _end: tuple[int, int, int] | None = None  # the end token, and its number in a text and in a pair of texts

    @property
    def tokenizer(self) -> Any:
        """The processor of a task on texts."""
        return self.processor

    def list_outputs(self) -> Mapping[str, str] | None:
        """Return the kinds of outputs of an evaluation: `outputs`, and `written_outputs` if it generates texts."""
        if self.outputs is None or self.generation.max_new_tokens is None:
            return self.outputs
        return {**self.outputs, **self.written_outputs}

    @property
    def tuned(self) -> dict[str, Any]:
        """Arguments of the task that `tune` or `scale_by` chose, for the export. Empty before they are chosen."""
        return {}

    @property
    def has_state(self) -> bool:
        """Whether checkpoints save state of the task."""
        return self.tunes or self.keeps_state

    def state_dict(self) -> dict[str, Any]:
        """Return the state that checkpoints save, if the task `has_state`."""
        return self.tuned

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`: arguments by name."""
        for name, value in state.items():
            setattr(self, name, value)

    @property
    def example_texts(self) -> Sequence[str]:
        """Example texts in the predict command that a run prints, for the columns that the task reads."""
        return ("I am super delighted.", "I am delighted.")

    @property
    def end_tokens(self) -> list[int]:
        """Tokens at which the exported model stops generating. Empty: those of its generation config."""
        return []

    @property
    def has_tokens(self) -> bool:
        """Whether rows are tokens, so that their number limits a microbatch."""
        return self.auto_processor == "AutoTokenizer"

    @property
    def writes(self) -> bool:
        """Whether the model can generate texts."""
        return self.auto_model in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")

    @property
    def frames_texts(self) -> bool:
        """Whether a tokenizer trained for the task puts special tokens around a text, and has no end token."""
        return not self.writes

    def bind(
        self,
        processor: Any,
        *,
        label_names: Sequence[str] | None = None,
        packs: bool = False,
        end_token: int | None = None,
    ) -> None:
        """Set what the task needs to encode and batch rows.

        Args:
            processor: The tokenizer or image processor.
            label_names: The names of the classes, by id.
            packs: Rows are packed instead of padded.
            end_token: If the task `reads_end`, the id that each row must have equally often.
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
        """Limit the input of a decoder to the model's number of positions; None: any number.

        Returns:
            Problems of arguments that need more positions.
        """
        return []

    def use_widths(self, step: int, *, longest: int) -> None:
        """Pad batches to the next multiple of `step` tokens, but not beyond `longest` tokens."""
        assert self.may_widen, "the task must know which columns to widen"
        self._width_step, self._longest = step, longest

    @property
    def may_widen(self) -> bool:
        """Whether a batch may be wider than its longest row, because the columns to widen are known.

        False if a subclass overrides `encode` or `collate` without setting `of_tokens` again.
        """
        declaring, *overriding = (
            next(kind for kind in type(self).__mro__ if name in vars(kind))
            for name in ("of_tokens", "encode", "collate")
        )
        return self.of_tokens is not None and all(issubclass(declaring, kind) for kind in overriding)

    def widen(self, tokens: int, *, longest: int) -> int:
        """Return the width of a batch whose longest row has this many tokens; see `use_widths`."""
        return int(widen(np.array(tokens), step=self._width_step, longest=longest))

    def scale_by(self, numbers: np.ndarray) -> None:
        """Compute the scale of a task that `scales` from the numbers of all training rows, `[N]` or `[N, K]`."""
        raise NotImplementedError

    def use_padding(self, side: str) -> None:
        """Pad on this side. If the task accepts both sides, the exported tokenizer pads on this side, too."""
        self.padding_side = side
        if len(self.padding_sides) > 1:
            self.tokenizer.padding_side = side

    # ------------------------------------------------------------------------------------------- from rows to batches

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Encode raw rows.

        By default the texts are tokenised; a task without a tokenizer gets its rows as they are.

        Args:
            rows: The task's columns by their own names; labels are class ids. Optional columns may be missing, and so
                may targets of rows to predict.
            max_length: The maximum number of tokens of an encoded row.

        Returns:
            Columns of equal length. These names have a meaning; the model does not get the last four:
            `label`: the class id of each row; default: that of its raw row. The batch has it as `labels`.
            `length`: the number of tokens of each row; default: that of `input_ids`, else 1.
            `source`: the position in `rows` where each encoded row starts, ascending; required if the number of rows
            changes.
            `truncated`: true for a row that was truncated.
            `fault`: why the model cannot predict a row, as the rest of a sentence; None if it can.
        """
        if self.processor is None:
            if clash := sorted(rows.keys() & set(RESERVED)):
                fault = f"declares the column {clash[0]}, a name that `encode` has for something else; give it another"
                raise UserError(f"task {type(self).__name__} {fault}")
            return {name: list(values) for name, values in rows.items()}
        texts = [list(rows[name]) for name, column in self.columns.items() if column.kind == "text" and name in rows]
        if len(texts) not in (1, 2):
            raise UserError(f"task {type(self).__name__} reads {len(texts)} columns of texts; let it override `encode`")
        encoded = self.tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        # The tokenizer reports what it cut off. Tokenising without a limit to compare lengths would take twice as long.
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
        """Encode rows to predict, each by itself. A task whose `encode` joins rows overrides this."""
        return self.encode(rows, max_length=max_length)

    def encode_for_evaluation(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Encode the rows of validation and test sets. A task that encodes these differently overrides this."""
        return self.encode(rows, max_length=max_length)

    def settings(self) -> dict[str, Any]:
        """Return the settings that change the result of `encode`. They are part of the key of the token cache."""
        return {} if self._end is None else {"end": list(self._end)}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Make a batch on the CPU from encoded rows.

        The tokenizer pads its own columns, `[B, T]`, and adds an `attention_mask`. Other lists of numbers are padded
        with the value in `pad`, else 0, `[B, L]`. Numbers are stacked, `[B]`. Other values stay a list. Rows of a task
        without `columns` are stacked by entry, `[B, ...]`. The `draw` of a row is left out.
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
        tokenizer_columns, batch, tokens, width = set(), {}, 0, 0
        if self.has_tokens:
            tokenizer_columns = {*self.tokenizer.model_input_names, "special_tokens_mask"} - self.pad.keys()
            features = [{name: value for name, value in row.items() if name in tokenizer_columns} for row in rows]
            tokens = max(len(row["input_ids"]) for row in rows)
            width = self.widen(tokens, longest=self._longest)
            side = self.padding_side
            padded = self.tokenizer.pad(
                features, "max_length", max_length=width, return_tensors="pt", padding_side=side
            )
            batch = dict(padded)
        for name in (name for name in rows[0] if name not in tokenizer_columns):
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
        """Return the inputs of the model: all columns except those of `pad`, such as the labels."""
        return {name: value for name, value in batch.items() if name not in self.pad}

    # --------------------------------------------------------------------------------------------- loss and prediction

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss **summed** over the targets of the batch, `[]`. Only the loop divides."""

    def count(self, batch: Batch) -> int:
        """Return the number of targets that the loss of this batch sums over.

        By default these are the `labels` that are not -100 if labels are integers, else the rows.
        """
        labels = batch.get("labels")
        if labels is not None and not labels.is_floating_point():
            return int((labels != -100).sum())
        return next(len(value) for value in batch.values() if isinstance(value, Tensor))

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Return the outputs that metrics compare, by name: `predictions` and `references`.

        Each is a tensor `[B, ...]`, or a list of B tensors of different lengths. Without labels there are no
        references.
        """

    def loss_and_predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Return the results of `loss` and `predict`. Override this if one forward pass can compute both."""
        loss = self.loss(model, batch)
        with self.logging_to(None):  # `loss` has logged already
            return loss, self.predict(model, batch)

    def log_metric(self, name: str, value: Tensor, *, count: float = 1) -> None:
        """Log a metric, such as a part of the loss, from `loss` or `loss_and_predict`.

        metrics.jsonl gets its mean: in training since the previous row, in an evaluation over all rows of the set.
        Outside a run nothing is logged.

        Args:
            name: An entry of `extra_metrics`.
            value: The sum over `count` rows or targets, `[]`. It stays on its device.
            count: The number of rows or targets, which may be 0.
        """
        if self._log is not None:
            self._log(name, value, count=count)

    @contextmanager
    def logging_to(self, log: LogMetric | None) -> Iterator[None]:
        """Let `log_metric` pass its metrics to `log` inside the block; None: they are dropped."""
        previous, self._log = self._log, log
        try:
            yield
        finally:
            self._log = previous

    def rate_rows(self, outputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the confidence of the model for each row, `[B]` by name, for prediction files and the report.

        By default, if `outputs` has classes and their `probabilities`: the `probability` of the predicted class, and
        the `reference_probability` of the correct class.

        Args:
            outputs: The result of `predict` or `loss_and_predict` for a batch, with references.
        """
        kinds, probabilities = self.list_outputs() or {}, outputs.get("probabilities")
        if kinds.get("predictions") != "class" or probabilities is None or getattr(probabilities, "ndim", 2) != 2:
            return {}
        return {
            "probability": _take(probabilities, outputs["predictions"]),
            "reference_probability": _take(probabilities, outputs["references"]),
        }

    def refer(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute the values that a task that `refers` needs from the model before the first update, `[B, K]`.

        `collate` gets them as a list of K numbers, in the column `reference` of each row.
        """
        raise NotImplementedError

    def merge(self, parts: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> dict[str, Any]:
        """Merge the outputs of all encoded rows of one raw row into the outputs that metrics compare.

        Override this if `encode` makes several rows of one, such as windows over a long text, or if metrics compare
        texts.

        Args:
            parts: The outputs of each encoded row, in order, as NumPy arrays and numbers.
            row: The raw row, by the task's columns. An unknown target is missing.

        Returns:
            Values of any kind, by name. Without a target there are no `references`.
        """
        (only,) = parts
        return dict(only)

    @property
    def merges(self) -> bool:
        """Whether the task overrides `merge`."""
        return type(self).merge is not Task.merge

    def tune(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Choose a parameter of the predictions, such as a threshold.

        Called after each evaluation of the validation rows, and finally with the exported weights, before the test rows
        are scored.

        Args:
            outputs: The outputs of all rows, `[N, ...]` by name.

        Returns:
            The outputs with the chosen parameter.
        """
        return outputs

    def decode(self, outputs: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the prediction of one row as readable JSON.

        Args:
            outputs: The result of `merge`, or of `predict` for the row, as NumPy arrays and numbers.
            row: The raw row, by the task's columns.
        """
        return {name: value.tolist() for name, value in outputs.items() if name != "references"}

    def logits_per_token(self, model_config: Any) -> int | None:
        """Return the number of logits per token, if all are in memory at once and take more of it than activations."""
        return None


class OnePassTask(Task):
    """A task whose loss and predictions follow from the same logits. An evaluation runs the model once for both.

    A subclass implements `_sum_loss` and `_make_outputs`.
    """

    def _logits(self, model: nn.Module, batch: Batch) -> Any:
        """Run the model. It does not get the labels, because most heads would compute a mean over the microbatch."""
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
    """Pack rows without padding: their columns and `position_ids` are `[1, T]`, where T is the number of all tokens.

    `row_lengths` is a tuple of the B lengths. `row_ends` has their cumulative sums from 0, `[B + 1]` int32.
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
    """Return numbers as `[B]`, and lists as `[B, L]`, padded on `side` with `fill` to the longest and to `at_least`."""
    if not isinstance(values[0], (list, tuple)):
        return torch.tensor(values)
    longest = max(*map(len, values), at_least)
    padded = []
    for value in values:
        filling = [fill] * (longest - len(value))
        padded.append([*filling, *value] if side == "left" else [*value, *filling])
    return torch.tensor(padded, dtype=None if longest else torch.long)  # torch makes floats from empty lists


def _take(probabilities: Tensor | Sequence[Tensor], classes: Tensor) -> Tensor:
    """Return the probability of the class of each row, `[B]`. probabilities: `[B, C]`, or a list of B tensors."""
    if isinstance(probabilities, Tensor):
        return probabilities.gather(1, classes[:, None].clamp(0, probabilities.shape[1] - 1))[:, 0]
    return torch.stack([row[number] for row, number in zip(probabilities, classes.tolist(), strict=True)])


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (list, tuple)) else 0
