"""An exported model at work: rows in, predictions (or a continuation) out."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import nn

from trainer_loop.components import check_arguments
from trainer_loop.data.batch_plan import cut_evaluation
from trainer_loop.data.column_values import find_fault
from trainer_loop.data.columns import RESERVED, Columns, bind_columns
from trainer_loop.data.cut import Limits
from trainer_loop.data.images import load_processor
from trainer_loop.data.loader import move_batch
from trainer_loop.data.messages import read_spelled
from trainer_loop.data.tokens import encode_rows
from trainer_loop.errors import Problems, UserError, in_one_line, refuse
from trainer_loop.metrics.load import check_metrics, load_metrics
from trainer_loop.metrics.named_metric import compute_metrics
from trainer_loop.metrics.shipped import SHIPPED
from trainer_loop.models.adapters import is_adapter, load_adapted_model
from trainer_loop.models.config import count_tabled_positions, count_tokens, find_text_config
from trainer_loop.models.trials import LONGER, make_answerable_rows, try_padding
from trainer_loop.models.weight_files import check_weight_files
from trainer_loop.parallel.row_outputs import RowOutputs
from trainer_loop.record.export import ExportRecord
from trainer_loop.runtime.budget import choose_microbatch_tokens, choose_token_budget
from trainer_loop.runtime.memory import is_out_of_memory
from trainer_loop.runtime.quiet import quieten_libraries
from trainer_loop.tasks.find import find_by_architecture, list_tasks, load_task
from trainer_loop.tasks.generation import Generation, continue_texts
from trainer_loop.tasks.losses import LOSSES
from trainer_loop.tasks.merge import merge_outputs
from trainer_loop.tasks.plan import name_own_loss
from trainer_loop.tasks.task import Batch, Rows, Task

_POSITIONS = ("text", "text_pair")  # names of the first two columns of any model
_ROWS = 32  # without tokens, that are predicted at a time


class Predictions(NamedTuple):
    """rows: see `Predictor.predict`. metrics: loss, metrics and number of the rows that have labels; None: none has.

    notes: what could not be computed, in lines for a person.
    """

    rows: list[dict[str, Any]]
    metrics: dict[str, float] | None
    notes: list[str]


class _Part(NamedTuple):
    """Some of the rows that are predicted, encoded.

    numbers: of the rows among all. sources: for each encoded row the place of its row in `rows`. lengths: its tokens.
    """

    rows: Rows
    numbers: list[int]
    encoded: list[dict[str, Any]]
    sources: list[int]
    lengths: list[int]


class Predictor:
    """Predicts rows in batches of like length; results come back in the order of the rows.

    processor: the tokenizer, or the image processor. max_length: tokens of a row; None for a task without tokens.
    columns: the task's columns -> those that the model was trained on. arguments: of the task. evaluation: how the run
    that trained the model evaluated it, see `ExportRecord`.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        task: str,
        max_length: int | None,
        columns: Mapping[str, str],
        arguments: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
    ):
        self.device = torch.accelerator.current_accelerator() or torch.device("cpu")
        self.model = model.to(self.device).eval()
        self.task = load_task(task)(**(arguments or {}))
        config: Any = self.model.config
        ends = config.is_encoder_decoder
        self.task.bind(
            processor,
            label_names=self.label_names,
            end_token=find_text_config(config).eos_token_id if ends else None,
        )
        # A length that the run was given stays: what the model writes may well end before.
        self.evaluation = evaluation or {}
        self.task.generation = _read_generation(self.evaluation.get("generate"))
        self._fit_positions()
        self.processor = processor
        self.max_length = max_length or 0
        if self.task.is_tried:
            self._choose_padding_side()
        self.columns = columns

    def _fit_positions(self) -> list[str]:
        return self.task.fit_positions(count_tabled_positions(self.model))

    def _choose_padding_side(self) -> None:
        rows = make_answerable_rows(self.task, self.model, max_length=self.max_length, longer=LONGER)
        if rows:
            self.task.use_padding(try_padding(self.model, self.task, rows).side)

    @property
    def label_names(self) -> list[str]:
        """Of the classes, in their order."""
        config: Any = self.model.config
        return [config.id2label.get(number, f"LABEL_{number}") for number in range(config.num_labels)]

    @property
    def label_values(self) -> list[Any]:
        """What stood in the training data for each class; the numbers of the classes where nobody noted it."""
        values = self.evaluation.get("values")
        fits = isinstance(values, list) and len(values) == len(self.label_names)
        return list(values) if fits and values is not None else list(range(len(self.label_names)))

    @classmethod
    def load(cls, model_dir: str | Path, *, trust_remote_code: bool = False) -> "Predictor":
        """A model directory. One that was not exported here has the task of its architecture, else classification.

        trust_remote_code: Python code that came with the model may run. Raises UserError where it cannot be loaded.
        """
        quieten_libraries()
        model_dir = Path(model_dir)
        record = read_record(model_dir)
        trusting: dict[str, Any] = {"trust_remote_code": trust_remote_code}  # left out, transformers would ask
        try:
            task = find_task_of(model_dir, record)
            if model_dir.is_dir() and not is_adapter(model_dir) and (faults := check_weight_files(model_dir)):
                raise UserError(faults)
            task_class = load_task(task)
            model_class = str(task_class.auto_model)
            if task_class.auto_processor == "AutoImageProcessor":
                processor, num_tokens, longest = load_processor(str(model_dir), **trusting), 0, None
            else:
                processor = transformers.AutoTokenizer.from_pretrained(model_dir, **trusting)
                processor.pad(processor("a"), padding=False)  # only then may damaged files be found out
                num_tokens, longest = count_tokens(processor), min(processor.model_max_length, 512)
            if is_adapter(model_dir):
                model = load_adapted_model(model_dir, model_class=model_class, num_tokens=num_tokens, **trusting)
                missing = set()
            else:
                model, loaded = getattr(transformers, model_class).from_pretrained(
                    model_dir, dtype=torch.float32, output_loading_info=True, **trusting
                )
                missing = loaded["missing_keys"]
        except UserError:
            raise
        except Exception as error:  # files of somebody else's may make transformers raise anything
            if is_out_of_memory(error):
                raise
            hint = "; trust_remote_code=true lets its code run" if "trust_remote_code" in str(error) else ""
            raise UserError(f"model={model_dir} cannot be loaded: {in_one_line(error)}{hint}") from error
        if missing:
            raise UserError(
                f"model={model_dir} has no weights for {', '.join(sorted(missing)[:4])}: "
                f"it was not trained for {task}, and would answer at random"
            )
        return cls(
            model,
            processor,
            task=task,
            max_length=(record and record.max_length) or longest,
            columns=find_columns(record, task).names,
            arguments=_read_arguments(record, task_class, place=f"model={model_dir}"),
            evaluation=record.evaluation if record is not None else None,
        )

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """One dict a text: `label` and `probability`, or for a causal LM `loss` (nats a token) and `perplexity`.

        A text is cut at `max_length` tokens; a causal LM has nothing to say (None) of a text of one token.

        Args:
            texts: The first column that the model reads. Words are what stands between spaces, choices what stands
                between bars, as in `milk | honey`, and messages a text of the user, or a list of them as JSON.
            pairs: The second column.
        """
        given = [texts] if pairs is None else [texts, pairs]
        inputs = self.inputs
        if isinstance(texts, (str, Mapping)) or any(isinstance(text, Mapping) for text in texts):
            raise UserError(
                f"predict takes a list of texts; for columns by name call predict_rows({{{inputs[0]!r}: [...]}})"
            )
        if len(given) > len(inputs):
            raise UserError(f"the model reads {', '.join(inputs)}, and no second text; see `predict_rows`")
        rows: dict[str, list[Any]] = {}
        problems = Problems()
        for own, column in zip(inputs, given, strict=False):
            rows[own] = [
                problems.collect(f"{own}: ", self.read_text, own, text) if isinstance(text, str) else text
                for text in column
            ]
        problems.refuse()
        return self.predict_rows(rows).rows

    def read_text(self, own: str, text: str) -> Any:
        """The value of a column that a text stands for, see `predict`.

        own: the task's name of the column. Raises UserError where it stands for none.
        """
        kind = self.task.columns[own].kind
        if kind == "words":
            return text.split()
        if kind == "choices":
            choices = [part.strip() for part in text.split("|")]
            if (fault := find_fault(choices, kind, None)) is not None:
                raise UserError(f"{fault}; separate them by |, as in a | b")
            return choices
        return read_spelled(text) if kind in ("conversation", "prompt", "answer") else text

    @property
    def inputs(self) -> list[str]:
        """The task's names of the columns that it predicts from, in their order."""
        return [
            own
            for own, column in self.task.columns.items()
            if own in self.columns or (column.kind == "text" and column.form is None)
            if not column.target
        ]

    @property
    def reads(self) -> list[str]:
        """Those of `inputs` that the model was trained on: every row to predict has them."""
        return [own for own in self.inputs if own in self.columns]

    def match_columns(self, given: Collection[str]) -> dict[str, str | None]:
        """The task's name of each column that is given; None for one that it does not have.

        A column may be given by the task's name, by the name that it had in the training data, or, the first and the
        second that the model reads, as `text` and `text_pair`. Where a name means several, it is that of the task if
        all of them can be, else that of the training data.
        """
        own = dict(zip(_POSITIONS, self.inputs, strict=False)) | {name: name for name in self.task.columns}
        trained = own | {name: own for own, name in self.columns.items() if own in self.task.columns}
        meant = {own.get(name) for name in given}
        names = own if None not in meant and len(meant) == len(given) else trained
        return {name: names.get(name) for name in given}

    def _name_own(self, rows: Rows) -> Rows:
        """The rows by the task's names of their columns."""
        names = self.match_columns(rows)
        reads = ", ".join(self.inputs)
        refuse([f"rows[{name!r}]: the model reads {reads}; remove it" for name, own in names.items() if own is None])
        return {str(own): rows[name] for name, own in names.items()}

    @torch.no_grad()
    def predict_rows(
        self,
        rows: Rows,
        *,
        labels: Sequence[int | list[int] | None] | None = None,
        origin_of: Callable[[int], str] = lambda number: f"text {number + 1}",
        before_pass: Callable[[], None] = lambda: None,
    ) -> Predictions:
        """Predictions, and how they compare with labels as the run that trained the model compares them.

        Args:
            rows: the columns by the task's names, or by those of the training data. Predictions are compared with a
                target that is no class, such as the text to write, if the rows have it.
            labels: the class of every row, or the classes of its words; None where they are not known; None: of no row.
            origin_of: what errors call a row, by its number from 0.
            before_pass: called before each forward pass; what it raises ends the work.

        Raises:
            UserError: the model cannot answer some of the rows, or reads no such column.
        """
        rows = self._name_own(rows)
        num_rows = len(next(iter(rows.values())))
        self._refuse_faults(rows, origin_of)
        known, unknown = self._separate(rows, labels, num_rows)
        problems = Problems()
        parts = [problems.collect("", self._encode, given, numbers, origin_of) for given, numbers in (known, unknown)]
        problems.refuse()
        has_targets = len(known[1]) > 0 and not self.task.refers
        loss_function, notes = self._find_loss() if has_targets else (None, [])
        if loss_function is not None:
            self.task.loss_function = loss_function  # type: ignore[attr-defined]
        predicted: list[dict[str, Any]] = [{}] * num_rows
        compared: Mapping[str, np.ndarray] = {}
        loss_sum, num_targets = 0.0, 0
        for part, is_judged in zip(parts, (has_targets, False), strict=True):
            if part is None or not part.numbers:
                continue
            columns, loss, count = self._run(
                part, origin_of, before_pass, counts=is_judged, judges=is_judged and bool(loss_function)
            )
            for place, number in enumerate(part.numbers):
                predicted[number] = self.task.decode(_read(columns, place), _read(rows, number))
            if is_judged:
                compared, loss_sum, num_targets = columns, loss, count
        if not has_targets:
            return Predictions(predicted, None, [])
        mean_loss = {} if loss_function is None else {"loss": loss_sum / max(num_targets, 1)}
        metrics, more = self._compute_metrics(compared)
        return Predictions(predicted, mean_loss | metrics | {"rows": len(known[1])}, notes + more)

    def _refuse_faults(self, rows: Rows, origin_of: Callable[[int], str]) -> None:
        """Raise UserError where a value is no conversation; values of other kinds are checked where they are read."""
        columns = Columns(self.task.columns, {}).without_targets().declared
        kinds = {own: columns[own].kind for own in rows if columns[own].kind in ("prompt", "answer", "tools")}
        refuse(
            [
                f"{origin_of(number)}: {own} {fault}"
                for own, kind in kinds.items()
                for number, value in enumerate(rows[own])
                if (fault := find_fault(value, kind, None)) is not None
            ]
        )

    def _separate(
        self, rows: Rows, labels: Sequence[int | list[int] | None] | None, num_rows: int
    ) -> tuple[tuple[Rows, list[int]], tuple[Rows, list[int]]]:
        """The rows whose targets are known, and the others; each with their numbers."""
        numbers = list(range(num_rows))
        if any(self.task.columns[own].target for own in rows):
            return (rows, numbers), ({}, [])
        own = next((own for own, column in self.task.columns.items() if column.kind in ("class", "classes")), None)
        given = [None] * num_rows if labels is None or own is None else labels
        known = [number for number in numbers if given[number] is not None]
        unknown = [number for number in numbers if given[number] is None]
        targets = {str(own): [given[number] for number in known]}
        return ({**_select(rows, known), **targets}, known), (_select(rows, unknown), unknown)

    def _encode(self, rows: Rows, numbers: list[int], origin_of: Callable[[int], str]) -> _Part:
        """Encode rows. numbers: what `origin_of` calls them by.

        Raises UserError if the model cannot answer some.
        """
        if not numbers:
            return _Part(rows, numbers, [], [], [])
        encoded, faults = encode_rows(self.task, self.task.encode_alone, rows, max_length=self.max_length)
        lengths, sources = encoded["length"], encoded["source"]
        refuse([f"{origin_of(numbers[sources[place]])} {reason}" for place, reason in faults.items()])
        columns = {name: values for name, values in encoded.items() if name not in RESERVED}
        return _Part(rows, numbers, [_read(columns, place) for place in range(len(lengths))], sources, lengths)

    def _run(
        self,
        part: _Part,
        origin_of: Callable[[int], str],
        before_pass: Callable[[], None],
        *,
        counts: bool,
        judges: bool,
    ) -> tuple[dict[str, np.ndarray], float, int]:
        """The outputs of these rows by name, the sum of their losses if `judges`, and their targets if `counts`."""
        answered, loss_sum, num_targets = RowOutputs(), 0.0, 0
        for places in self._cut(part.lengths):
            before_pass()
            batch = self.task.collate([part.encoded[place] for place in places])
            num_targets += self.task.count(batch) if counts else 0
            origin = origin_of(part.numbers[part.sources[places[0]]])
            loss, outputs = self._answer(batch, place=origin, judges=judges)
            loss_sum += loss
            answered.add(places, outputs)
        columns = answered.join()
        if self.task.merges:
            read = functools.partial(_read, part.rows)
            columns, _ = merge_outputs(self.task, columns, sources=part.sources, read=read)
        return columns, loss_sum, num_targets

    def _answer(self, batch: Batch, *, place: str, judges: bool) -> tuple[float, dict[str, Any]]:
        """The loss, 0 if it is not asked for, and what is predicted. place: of the first row, for errors."""
        batch = move_batch(batch, self.device)
        try:
            if not judges:
                return 0.0, self.task.predict(self.model, batch)
            loss, outputs = self.task.loss_and_predict(self.model, batch)
            return float(loss), outputs
        except (RuntimeError, ValueError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            name = type(self.model).__name__
            raise UserError(f"{place}: a {name} cannot answer it: {in_one_line(error)}") from error

    def _find_loss(self) -> tuple[Any, list[str]]:
        """The loss that the run was evaluated by, and what is to be said of it. None: it cannot be had."""
        told = self.evaluation.get("loss")
        loss = told if isinstance(told, Mapping) else {}
        if not loss.get("name") and not loss.get("args"):
            return self.task.loss_function, []  # type: ignore[attr-defined] # its own
        name, arguments = str(loss.get("name") or name_own_loss(self.task)), loss.get("args") or {}
        if name not in LOSSES:  # a name in a model directory must not choose what is imported
            return None, [f"no loss: the model was trained with {name}, which is no loss of trainer_loop"]
        given = list(inspect.signature(LOSSES[name]).parameters)[:2]
        problems = check_arguments(LOSSES[name], arguments, place="loss.args", given=given)
        if problems:
            return None, [f"no loss: {problem}" for problem in problems]
        return functools.partial(LOSSES[name], **arguments), []

    def _compute_metrics(self, columns: Mapping[str, np.ndarray]) -> tuple[dict[str, float], list[str]]:
        """The metrics that the run computed, as far as trainer_loop brings them, else those of the task."""
        told = self.evaluation.get("metrics")
        is_list = isinstance(told, list) and all(isinstance(entry, (str, Mapping)) for entry in told)
        entries = list(told) if is_list and told else list(self.task.metrics)
        names = [str(entry if isinstance(entry, str) else entry.get("name")) for entry in entries]
        notes = [f"{name} is not computed: it is no metric of trainer_loop" for name in names if name not in SHIPPED]
        entries = [entry for entry, name in zip(entries, names, strict=True) if name in SHIPPED]
        num_labels = len(self.label_names)
        problems = check_metrics(
            entries, num_labels=num_labels, outputs=self.task.list_outputs(), label_names=self.label_names
        )
        try:
            refuse(problems)
            metrics = load_metrics(entries, num_labels=num_labels, label_names=self.label_names)
            return compute_metrics(metrics, columns), notes
        except UserError as error:
            return {}, notes + [f"no metrics: {problem}" for problem in error.problems]

    def use_generation(self, options: Mapping[str, Any]) -> None:
        """Change how texts are written.

        Args:
            options: Fields of `evaluate.generate`, see docs/config.md; the others stay as the model was evaluated.

        Raises:
            UserError: The model has fewer positions, or an option has no effect.
        """
        self.task.generation = replace(self.task.generation, **options)
        if "length_penalty" in options and self.task.generation.num_beams == 1:
            raise UserError("length_penalty: only a beam search compares texts of unlike lengths; add num_beams=4")
        refuse([line.replace("evaluate.generate.", "") for line in self._fit_positions()])

    def generate(self, text: str, *, max_new_tokens: int | None = None) -> str:
        """A text and its likeliest continuation.

        Args:
            max_new_tokens: None: that of `use_generation`, else 64, or as many as the model has positions behind the
                text.

        Raises:
            UserError: There are not so many positions, or the text has no tokens.
        """
        generation = replace(self.task.generation, max_new_tokens=max_new_tokens or self.task.generation.max_new_tokens)
        positions = count_tabled_positions(self.model)
        (continued,) = continue_texts(self.model, self.processor, [text], generation=generation, positions=positions)
        if continued is None:
            raise UserError("the text has no tokens, and a model continues no empty text; give it one")
        return continued

    def continue_texts(
        self, texts: Sequence[str], *, origin_of: Callable[[int], str] = lambda number: f"text {number + 1}"
    ) -> list[str | None]:
        """What the model writes behind each text, see `use_generation`; None for a text without tokens.

        Args:
            origin_of: What errors call a text, by its number from 0.

        Raises:
            UserError: There are not enough positions for some of them.
        """
        continued = continue_texts(
            self.model,
            self.processor,
            texts,
            generation=self.task.generation,
            positions=count_tabled_positions(self.model),
            origin_of=origin_of,
        )
        return [whole and whole.removeprefix(text) for text, whole in zip(texts, continued, strict=True)]

    def _cut(self, lengths: Sequence[int]) -> list[list[int]]:
        """The numbers of the rows of each forward pass. lengths: the tokens of each row."""
        if not self.task.has_tokens:
            total = len(lengths)
            return [list(range(start, min(start + _ROWS, total))) for start in range(0, total, _ROWS)]
        logits_per_token = self.task.logits_per_token(self.model.config)
        limits = Limits(
            max_tokens=choose_token_budget(self.device.type, training=False, logits_per_token=logits_per_token),
            microbatch_tokens=choose_microbatch_tokens(self.device.type),
        )
        (microbatches,) = cut_evaluation(lengths, limits)
        return [rows.tolist() for rows in microbatches]


def _select(rows: Rows, numbers: Sequence[int]) -> dict[str, list[Any]]:
    """The rows of these numbers."""
    return {name: [column[number] for number in numbers] for name, column in rows.items()}


def _read(columns: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The row of this number."""
    return {name: column[number] for name, column in columns.items()}


def _read_arguments(record: ExportRecord | None, task_class: type[Task], *, place: str) -> dict[str, Any]:
    """`task.args` of the run that trained the model. Raises UserError where the task does not take them."""
    told = {} if record is None else record.plan.get("task.args")
    arguments = {**(told if isinstance(told, Mapping) else {}), **({} if record is None else record.tuned)}
    if task_class.generates:  # of a version in which these were arguments of the task
        arguments = {name: value for name, value in arguments.items() if name not in ("max_new_tokens", "num_beams")}
    given = ("loss_function",)  # which a model directory must not choose
    refuse(check_arguments(task_class, arguments, place=f"{place}: task.args", given=given))
    return arguments


def _read_generation(told: object) -> Generation:
    """How the run that trained the model wrote texts."""
    given = told if isinstance(told, Mapping) else {}
    return Generation(
        **{
            field.name: given[field.name]
            for field in fields(Generation)
            if type(given.get(field.name)) in (int, float) and field.name != "positions"
        }
    )


def read_record(model_dir: Path) -> ExportRecord | None:
    """What was noted when the model was exported. Raises UserError where it was trained for a task of somebody's own.

    A name in a model directory must not choose what is imported.
    """
    record = ExportRecord.read(model_dir)
    if record is not None and record.task not in list_tasks():
        known = ", ".join(list_tasks())
        raise UserError(f"model={model_dir} was trained for the task {record.task}; known here: {known}")
    return record


def find_columns(record: ExportRecord | None, task: str) -> Columns:
    """The columns that a model reads; of one that was not exported here, those that its task needs."""
    return bind_columns(load_task(task).columns, record.columns if record is not None else {}, task=task)


def find_task_of(model_dir: Path, record: ExportRecord | None) -> str:
    """The task of a model: of its record, else by its architecture. Raises UserError for a damaged config."""
    if record is not None:
        return record.task
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(model_dir)
    except OSError as error:
        raise UserError(f"model={model_dir} cannot be loaded: {in_one_line(error)}") from error
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    # Without a problem type, transformers takes a head of one output for one that predicts numbers.
    is_number = len(config.get("id2label") or ()) == 1 or config.get("num_labels") == 1
    problem_type = config.get("problem_type") or ("regression" if is_number else None)
    return find_by_architecture(architecture, problem_type) or "sequence_classification"


def check_writes(task: str, options: Iterable[str]) -> list[str]:
    """What is wrong with options of `Predictor.use_generation` for a model of this task."""
    if load_task(task)().writes:
        return []
    return [f"{name}= is given, but a model of the task {task} writes nothing; remove it" for name in options]
