"""`Predictor`: loads an exported model, and predicts rows or continues texts."""

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
from trainer_loop.data.columns import RESERVED, Columns, bind_columns
from trainer_loop.data.conversations import read_spelled
from trainer_loop.data.cut import Limits
from trainer_loop.data.loader import move_batch
from trainer_loop.data.processors import load_image_processor
from trainer_loop.data.tokenise import encode_rows
from trainer_loop.data.values import find_fault
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

_ALIASES = ("text", "text_pair")  # accepted names for the first two columns of any model
_ROWS = 32  # batch size of a task without tokens


class Predictions(NamedTuple):
    """Predictions of rows, and their comparison with labels.

    Attributes:
        rows: See `Predictor.predict`.
        metrics: Loss, metrics and number of the rows that have labels; None: no row has a label.
        notes: Loss or metrics that could not be computed, one line each.
    """

    rows: list[dict[str, Any]]
    metrics: dict[str, float] | None
    notes: list[str]


class _Part(NamedTuple):
    """A part of the rows, encoded.

    Attributes:
        numbers: The position of each row of `rows` among all rows.
        sources: For each encoded row the position of its row in `rows`.
        lengths: The number of tokens of each encoded row.
    """

    rows: Rows
    numbers: list[int]
    encoded: list[dict[str, Any]]
    sources: list[int]
    lengths: list[int]


class Predictor:
    """Predicts rows in batches of similar length. Results have the order of the rows.

    Args:
        processor: The tokenizer or the image processor.
        max_length: Maximum number of tokens of a row; None for a task without tokens.
        columns: The task's columns -> the columns of the training data.
        arguments: Arguments of the task.
        evaluation: How the training run evaluated the model, see `ExportRecord`.
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
        end_token = find_text_config(config).eos_token_id if config.is_encoder_decoder else None
        self.task.bind(processor, label_names=self.label_names, end_token=end_token)
        self.evaluation = evaluation or {}
        self.task.generation = _read_generation(self.evaluation.get("generate"))
        self._fit_positions()  # problems are ignored: a text may end before it needs too many positions
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
        """The names of the classes, in the order of their ids."""
        config: Any = self.model.config
        return [config.id2label.get(number, f"LABEL_{number}") for number in range(config.num_labels)]

    @property
    def label_values(self) -> list[Any]:
        """The value of each class in the training data, or the class ids if the export does not record the values."""
        values = self.evaluation.get("values")
        fits = isinstance(values, list) and len(values) == len(self.label_names)
        return list(values) if fits and values is not None else list(range(len(self.label_names)))

    @classmethod
    def load(cls, model_dir: str | Path, *, trust_remote_code: bool = False) -> "Predictor":
        """Load a model directory.

        If trainer_loop did not export the model, its architecture decides the task; the default is classification.

        Args:
            trust_remote_code: Allow Python code of the model directory to run.

        Raises:
            UserError: The model cannot be loaded.
        """
        quieten_libraries()
        model_dir = Path(model_dir)
        record = read_record(model_dir)
        trust: dict[str, Any] = {"trust_remote_code": trust_remote_code}  # without a value transformers asks the user
        try:
            task = find_task_of(model_dir, record)
            if model_dir.is_dir() and not is_adapter(model_dir) and (faults := check_weight_files(model_dir)):
                raise UserError(faults)
            task_class = load_task(task)
            model_class = str(task_class.auto_model)
            if task_class.auto_processor == "AutoImageProcessor":
                processor, num_tokens, longest = load_image_processor(str(model_dir), **trust), 0, None
            else:
                processor = transformers.AutoTokenizer.from_pretrained(model_dir, **trust)
                processor.pad(processor("a"), padding=False)  # some damaged files only fail when they are used
                num_tokens, longest = count_tokens(processor), min(processor.model_max_length, 512)
            if is_adapter(model_dir):
                model = load_adapted_model(model_dir, model_class=model_class, num_tokens=num_tokens, **trust)
                missing = set()
            else:
                model, loaded = getattr(transformers, model_class).from_pretrained(
                    model_dir, dtype=torch.float32, output_loading_info=True, **trust
                )
                missing = loaded["missing_keys"]
        except UserError:
            raise
        except Exception as error:  # with damaged or foreign files transformers may raise any error
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
        """Predict texts.

        Texts are truncated to `max_length` tokens. For a causal LM a text of one token has None as its loss.

        Args:
            texts: Values of the first column that the model reads. Words are separated by spaces, choices by bars, as
                in `milk | honey`. A conversation is a user message, or a list of messages as JSON.
            pairs: Values of the second column.

        Returns:
            One dict for each text: for example `label` and `probability`, or for a causal LM `loss` (nats per token)
            and `perplexity`.
        """
        columns = [texts] if pairs is None else [texts, pairs]
        inputs = self.inputs
        if isinstance(texts, (str, Mapping)) or any(isinstance(text, Mapping) for text in texts):
            raise UserError(
                f"predict takes a list of texts; for columns by name call predict_rows({{{inputs[0]!r}: [...]}})"
            )
        if len(columns) > len(inputs):
            raise UserError(f"the model reads {', '.join(inputs)}, and no second text; see `predict_rows`")
        rows: dict[str, list[Any]] = {}
        problems = Problems()
        for name, column in zip(inputs, columns, strict=False):
            rows[name] = [
                problems.collect(f"{name}: ", self.read_text, name, text) if isinstance(text, str) else text
                for text in column
            ]
        problems.refuse()
        return self.predict_rows(rows).rows

    def read_text(self, name: str, text: str) -> Any:
        """Parse the text of a column, see `predict`. Raises UserError if it cannot be parsed.

        Args:
            name: The task's name of the column.
        """
        kind = self.task.columns[name].kind
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
        """The columns that the task predicts from, by the task's names and in its order."""
        return [
            name
            for name, column in self.task.columns.items()
            if name in self.columns or (column.kind == "text" and column.form is None)
            if not column.target
        ]

    @property
    def reads(self) -> list[str]:
        """Those of `inputs` that the training data had. Every row to predict must have them."""
        return [name for name in self.inputs if name in self.columns]

    def match_columns(self, names: Collection[str]) -> dict[str, str | None]:
        """Map column names of a user to the task's names; None for a column that the task does not have.

        A name may be the task's name of the column, its name in the training data, or `text` and `text_pair` for the
        first and second column that the model reads. If all names can be read as names of the task, they are; else
        names of the training data come first.
        """
        by_task = dict(zip(_ALIASES, self.inputs, strict=False)) | {name: name for name in self.task.columns}
        by_data = by_task | {column: name for name, column in self.columns.items() if name in self.task.columns}
        matches = {by_task.get(name) for name in names}
        table = by_task if None not in matches and len(matches) == len(names) else by_data
        return {name: table.get(name) for name in names}

    def _rename_columns(self, rows: Rows) -> Rows:
        """Return the rows with the task's names of the columns. Raises UserError for columns that it does not have."""
        matches = self.match_columns(rows)
        reads = ", ".join(self.inputs)
        refuse([f"rows[{name!r}]: the model reads {reads}; remove it" for name, own in matches.items() if own is None])
        return {str(own): rows[name] for name, own in matches.items()}

    @torch.no_grad()
    def predict_rows(
        self,
        rows: Rows,
        *,
        labels: Sequence[int | list[int] | None] | None = None,
        origin_of: Callable[[int], str] = lambda number: f"text {number + 1}",
        before_pass: Callable[[], None] = lambda: None,
    ) -> Predictions:
        """Predict rows, and compute loss and metrics of those with labels, as the training run did.

        Args:
            rows: Columns by the task's names, or by those of the training data. A target that is no class, such as the
                text to write, is compared with the predictions if the rows have it.
            labels: The class id of each row, or the class ids of its words. None for a row whose label is unknown, or
                instead of the list if no label is known.
            origin_of: Returns the name of a row in error messages, from its number (from 0).
            before_pass: Called before each forward pass. An exception that it raises ends the prediction.

        Raises:
            UserError: The model cannot answer some of the rows, or does not read a column.
        """
        rows = self._rename_columns(rows)
        num_rows = len(next(iter(rows.values())))
        self._refuse_faults(rows, origin_of)
        labelled, unlabelled = self._separate(rows, labels, num_rows)
        problems = Problems()
        parts = [
            problems.collect("", self._encode, part_rows, numbers, origin_of)
            for part_rows, numbers in (labelled, unlabelled)
        ]
        problems.refuse()
        has_targets = len(labelled[1]) > 0 and not self.task.refers
        loss_function, notes = self._find_loss() if has_targets else (None, [])
        if loss_function is not None:
            self.task.loss_function = loss_function  # type: ignore[attr-defined]
        predictions: list[dict[str, Any]] = [{}] * num_rows
        scored: Mapping[str, np.ndarray] = {}
        loss_sum, num_targets = 0.0, 0
        for part, is_scored in zip(parts, (has_targets, False), strict=True):
            if part is None or not part.numbers:
                continue
            outputs, loss, count = self._run(
                part, origin_of, before_pass, counts=is_scored, computes_loss=is_scored and bool(loss_function)
            )
            for place, number in enumerate(part.numbers):
                predictions[number] = self.task.decode(_read(outputs, place), _read(rows, number))
            if is_scored:
                scored, loss_sum, num_targets = outputs, loss, count
        if not has_targets:
            return Predictions(predictions, None, [])
        mean_loss = {} if loss_function is None else {"loss": loss_sum / max(num_targets, 1)}
        metrics, more_notes = self._compute_metrics(scored)
        return Predictions(predictions, mean_loss | metrics | {"rows": len(labelled[1])}, notes + more_notes)

    def _refuse_faults(self, rows: Rows, origin_of: Callable[[int], str]) -> None:
        """Raise UserError for values that are no conversation. Other kinds are checked where they are read."""
        columns = Columns(self.task.columns, {}).without_targets().declared
        kinds = {name: columns[name].kind for name in rows if columns[name].kind in ("prompt", "answer", "tools")}
        refuse(
            [
                f"{origin_of(number)}: {name} {fault}"
                for name, kind in kinds.items()
                for number, value in enumerate(rows[name])
                if (fault := find_fault(value, kind, None)) is not None
            ]
        )

    def _separate(
        self, rows: Rows, labels: Sequence[int | list[int] | None] | None, num_rows: int
    ) -> tuple[tuple[Rows, list[int]], tuple[Rows, list[int]]]:
        """Separate the rows with known targets from the others. Returns the rows and their numbers for both parts."""
        numbers = list(range(num_rows))
        if any(self.task.columns[name].target for name in rows):
            return (rows, numbers), ({}, [])
        target = next((name for name, column in self.task.columns.items() if column.kind in ("class", "classes")), None)
        labels = [None] * num_rows if labels is None or target is None else labels
        known = [number for number in numbers if labels[number] is not None]
        unknown = [number for number in numbers if labels[number] is None]
        targets = {str(target): [labels[number] for number in known]}
        return ({**_select(rows, known), **targets}, known), (_select(rows, unknown), unknown)

    def _encode(self, rows: Rows, numbers: list[int], origin_of: Callable[[int], str]) -> _Part:
        """Encode rows. Raises UserError if the model cannot answer some of them.

        Args:
            numbers: The number of each row, which `origin_of` takes.
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
        computes_loss: bool,
    ) -> tuple[dict[str, np.ndarray], float, int]:
        """Run the model. Returns outputs by name, the loss sum if `computes_loss`, the target count if `counts`."""
        answered, loss_sum, num_targets = RowOutputs(), 0.0, 0
        for places in self._cut(part.lengths):
            before_pass()
            batch = self.task.collate([part.encoded[place] for place in places])
            num_targets += self.task.count(batch) if counts else 0
            origin = origin_of(part.numbers[part.sources[places[0]]])
            loss, outputs = self._answer(batch, place=origin, computes_loss=computes_loss)
            loss_sum += loss
            answered.add(places, outputs)
        columns = answered.join()
        if self.task.merges:
            read = functools.partial(_read, part.rows)
            columns, _ = merge_outputs(self.task, columns, sources=part.sources, read=read)
        return columns, loss_sum, num_targets

    def _answer(self, batch: Batch, *, place: str, computes_loss: bool) -> tuple[float, dict[str, Any]]:
        """Return the loss sum (0 without `computes_loss`) and the outputs. place: name of the first row, for errors."""
        batch = move_batch(batch, self.device)
        try:
            if not computes_loss:
                return 0.0, self.task.predict(self.model, batch)
            loss, outputs = self.task.loss_and_predict(self.model, batch)
            return float(loss), outputs
        except (RuntimeError, ValueError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            name = type(self.model).__name__
            raise UserError(f"{place}: a {name} cannot answer it: {in_one_line(error)}") from error

    def _find_loss(self) -> tuple[Any, list[str]]:
        """Return the loss function of the training run, or None if it is not available, and notes about it."""
        recorded = self.evaluation.get("loss")
        loss = recorded if isinstance(recorded, Mapping) else {}
        if not loss.get("name") and not loss.get("args"):
            return self.task.loss_function, []  # type: ignore[attr-defined] # the task's default
        name, arguments = str(loss.get("name") or name_own_loss(self.task)), loss.get("args") or {}
        if name not in LOSSES:  # a name in a model directory must not cause an import
            return None, [f"no loss: the model was trained with {name}, which is no loss of trainer_loop"]
        logits_and_targets = list(inspect.signature(LOSSES[name]).parameters)[:2]
        problems = check_arguments(LOSSES[name], arguments, place="loss.args", given=logits_and_targets)
        if problems:
            return None, [f"no loss: {problem}" for problem in problems]
        return functools.partial(LOSSES[name], **arguments), []

    def _compute_metrics(self, columns: Mapping[str, np.ndarray]) -> tuple[dict[str, float], list[str]]:
        """Compute the metrics of the training run, or else of the task. Metrics from elsewhere only get a note."""
        recorded = self.evaluation.get("metrics")
        is_list = isinstance(recorded, list) and all(isinstance(entry, (str, Mapping)) for entry in recorded)
        entries = list(recorded) if is_list and recorded else list(self.task.metrics)
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
        """Change the options of text generation.

        Args:
            options: Fields of `evaluate.generate`, see docs/config.md. Other options stay as in the training run.

        Raises:
            UserError: The model has fewer positions, or an option has no effect.
        """
        self.task.generation = replace(self.task.generation, **options)
        if "length_penalty" in options and self.task.generation.num_beams == 1:
            raise UserError("length_penalty: only a beam search compares texts of unlike lengths; add num_beams=4")
        refuse([line.replace("evaluate.generate.", "") for line in self._fit_positions()])

    def generate(self, text: str, *, max_new_tokens: int | None = None) -> str:
        """Return a text followed by its most likely continuation.

        Args:
            max_new_tokens: None: the value of `use_generation`, else 64, or fewer if the model has fewer positions
                left.

        Raises:
            UserError: The model has too few positions, or the text has no tokens.
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
        """Return the continuation of each text, see `use_generation`; None for a text without tokens.

        Args:
            origin_of: Returns the name of a text in error messages, from its number (from 0).

        Raises:
            UserError: The model has too few positions for some of the texts.
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
        """Return the positions of the rows of each forward pass. lengths: number of tokens of each row."""
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
    return {name: [column[number] for number in numbers] for name, column in rows.items()}


def _read(columns: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return one row of the columns."""
    return {name: column[number] for name, column in columns.items()}


def _read_arguments(record: ExportRecord | None, task_class: type[Task], *, place: str) -> dict[str, Any]:
    """Return `task.args` of the training run. Raises UserError if the task does not take them."""
    recorded = {} if record is None else record.plan.get("task.args")
    arguments = {**(recorded if isinstance(recorded, Mapping) else {}), **({} if record is None else record.tuned)}
    if task_class.generates:  # in older exports these were arguments of the task
        arguments = {name: value for name, value in arguments.items() if name not in ("max_new_tokens", "num_beams")}
    reserved = ("loss_function",)  # a model directory must not choose it
    refuse(check_arguments(task_class, arguments, place=f"{place}: task.args", given=reserved))
    return arguments


def _read_generation(recorded: object) -> Generation:
    """Read the generation options of the training run. Invalid entries are ignored."""
    options = recorded if isinstance(recorded, Mapping) else {}
    return Generation(
        **{
            field.name: options[field.name]
            for field in fields(Generation)
            if type(options.get(field.name)) in (int, float) and field.name != "positions"
        }
    )


def read_record(model_dir: Path) -> ExportRecord | None:
    """Read the export record of a model directory. Raises UserError if its task is not one of trainer_loop.

    A custom task is refused because a name in a model directory must not cause an import.
    """
    record = ExportRecord.read(model_dir)
    if record is not None and record.task not in list_tasks():
        names = ", ".join(list_tasks())
        raise UserError(f"model={model_dir} was trained for the task {record.task}; known here: {names}")
    return record


def find_columns(record: ExportRecord | None, task: str) -> Columns:
    """Return the columns that a model reads: those of its record, else those that its task requires."""
    return bind_columns(load_task(task).columns, record.columns if record is not None else {}, task=task)


def find_task_of(model_dir: Path, record: ExportRecord | None) -> str:
    """Return the task of a model from its record, else from its architecture. Raises UserError for a damaged config."""
    if record is not None:
        return record.task
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(model_dir)
    except OSError as error:
        raise UserError(f"model={model_dir} cannot be loaded: {in_one_line(error)}") from error
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    # Without a problem type, transformers treats a head with one output as a regression head.
    is_number = len(config.get("id2label") or ()) == 1 or config.get("num_labels") == 1
    problem_type = config.get("problem_type") or ("regression" if is_number else None)
    return find_by_architecture(architecture, problem_type) or "sequence_classification"


def check_writes(task: str, options: Iterable[str]) -> list[str]:
    """Return the problems of generation options for a task: a task that writes no texts takes none."""
    if load_task(task)().writes:
        return []
    return [f"{name}= is given, but a model of the task {task} writes nothing; remove it" for name in options]
