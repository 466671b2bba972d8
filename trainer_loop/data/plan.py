"""The section `data`: every split is read and checked, then encoded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer_loop.config.named_sets import name_sets, parse_set
from trainer_loop.data.checks import check_splits
from trainer_loop.data.files import find_files, is_file_spec, read_files
from trainer_loop.data.given_rows import as_dataset, cut_rows, take_rows
from trainer_loop.data.labels import LabelNames
from trainer_loop.data.loader import KeptRows
from trainer_loop.data.missing import Holes, settle_missing
from trainer_loop.data.report import describe_data
from trainer_loop.data.shards import ShardedSplit
from trainer_loop.data.source import call_rows_function, given_split, load_splits, open_splits
from trainer_loop.data.split import Split
from trainer_loop.data.text_format import TextFormat
from trainer_loop.data.tokens import Encoder, TokenisedSplit, tokenise_split
from trainer_loop.data.train_stream import TrainStream, prepare_stream
from trainer_loop.errors import Problems, UserError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Columns:
    """The columns of the user's data that a task on texts reads. label: None for a task that needs none."""

    text: str
    text_pair: str | None
    label: str | None

    @property
    def texts(self) -> list[str]:
        return [self.text] if self.text_pair is None else [self.text, self.text_pair]

    @property
    def all(self) -> list[str]:
        return [*self.texts, *([] if self.label is None else [self.label])]


@dataclass(frozen=True)
class DataPlan:
    """Splits that were read and checked.

    splits: raw rows by split. streamed: the training split where it is streamed; `splits` then holds its first rows.
    labels: the classes; None without a label, or where they could not be found.
    """

    columns: Columns
    splits: Mapping[str, Split]
    streamed: ShardedSplit | None
    labels: LabelNames | None
    max_length: int
    cache_dir: str | None
    missing: str
    shuffle_rows: int
    show_progress: bool

    def iterate_texts(self) -> Iterator[str]:
        """Every text of the training split, one after the other, without holding all of them."""
        for batch in self.splits["train"].rows.select_columns(self.columns.texts).iter(batch_size=1000):
            for column in self.columns.texts:
                yield from batch[column]

    def encode(
        self, task: Encoder, tokenizer: Any, *, counts_stream: bool, seed: int, say: Say
    ) -> tuple[dict[str, TokenisedSplit], TrainStream | None]:
        """The rows as the model reads them, and a report of the data; of a stream, of its first rows.

        counts_stream: the rows of a streamed split are counted, because its epochs are.
        """
        asked: dict[str, Any] = {
            "task": task,
            "tokenizer": tokenizer,
            "text": self.columns.text,
            "text_pair": self.columns.text_pair,
            "label": self.columns.label,
            "label_names": self.labels,
            "max_length": self.max_length,
            "cache_dir": self.cache_dir,
            "show_progress": self.show_progress,
            "say": say,
        }
        splits, stream = dict(self.splits), None
        if self.streamed is not None:
            stream = prepare_stream(
                self.streamed,
                splits.pop("train"),
                **asked,
                is_counted=counts_stream,
                shuffle_rows=self.shuffle_rows,
                seed=seed,
                missing=self.missing,
            )
        encoded = {name: tokenise_split(split, **asked) for name, split in splits.items()}
        for line in describe_data(
            encoded,
            splits=splits,
            text=self.columns.text,
            text_pair=self.columns.text_pair,
            label_names=self.labels,
        ):
            say(line)
        return encoded, stream

    def encode_rows(
        self, rows: Any, task: Encoder, tokenizer: Any, *, labelled: bool, say: Say
    ) -> tuple[TokenisedSplit, KeptRows | None]:
        """Rows that are held in memory, as the model reads them, and which of them were kept; None: all of them.

        labelled: they have labels; else these are left out. Raises UserError with everything that is wrong with them.
        """
        needs_label = self.columns.label is not None
        columns = self.columns if labelled else replace(self.columns, label=None)
        table = as_dataset(rows, place="rows", columns=columns.all)
        named = given_split(table, name="rows", texts=columns.texts, label=columns.label)
        try:
            holes = Holes(columns.texts, columns.label, blank=needs_label)
            split, lines = settle_missing(named, holes, missing=self.missing)
            problems, _, _ = check_splits(
                {"rows": split},
                text=columns.text,
                text_pair=columns.text_pair,
                label=columns.label,
                label_names=None,
                missing=self.missing,
                known=self.labels,
                may_be_blank=not needs_label,
            )
            if problems:
                raise UserError(problems)
        except UserError as error:
            raise UserError([problem.replace("data.rows", "rows") for problem in error.problems]) from error
        for line in lines:
            say(line)
        kept = split.origins.number - 1 if len(split.rows) < len(named.rows) else None  # numbers count from 1
        encoded = tokenise_split(
            split,
            task=task,
            tokenizer=tokenizer,
            text=columns.text,
            text_pair=columns.text_pair,
            label=columns.label,
            label_names=None if columns.label is None else self.labels,
            max_length=self.max_length,
            cache_dir=self.cache_dir,
            show_progress=False,
            say=lambda line: None,
        )
        return encoded, None if kept is None else KeptRows(kept, len(named.rows))


def plan_data(
    *,
    name: str | None,
    config: str | None,
    train: Any,
    validation: Any,
    test: Any,
    validation_fraction: float | None,
    streaming: bool,
    shuffle_rows: int,
    files: TextFormat,
    missing: str,
    limit: Mapping[str, int | None],
    text: str,
    text_pair: str | None,
    label: str | None,
    label_names: Any,
    max_length: int,
    num_workers: int | str,
    cache_dir: str | None,
    given: Mapping[str, Any],
    seed: int,
    show_progress: bool,
    say: Say,
    warn: Say,
    problems: Problems,
) -> DataPlan:
    """Read and check the splits of the section `data`, whose keys the first parameters are.

    What is wrong is added to `problems`, and the plan holds what could be read all the same: labels tell more problems.

    Args:
        label: None where the task needs none.
        given: rows that were made in Python, by split or set, in the place of what the config names.
    """
    del num_workers  # it changes how rows are loaded, not which
    columns = Columns(text, text_pair, label)
    asked: dict[str, Any] = {"train": train, "validation": validation, "test": test}
    splits: dict[str, Split] = {}
    streamed: ShardedSplit | None = None
    labels: LabelNames | None = None
    if _put_given(asked, given, columns.all, problems):
        asked |= {
            "name": name,
            "config": config,
            "limit": limit,
            "text": text,
            "text_pair": text_pair,
            "label": label,
            "seed": seed,
            "show_progress": show_progress,
            "text_format": files,
            "missing": missing,
            "say": say,
        }
        if streaming:
            splits, streamed, wrong = open_splits(**asked)
        else:
            splits, wrong = load_splits(**asked, validation_fraction=validation_fraction)
        problems.lines += wrong
        wrong, warnings, labels = check_splits(
            splits,
            text=text,
            text_pair=text_pair,
            label=label,
            label_names=label_names,
            is_streamed=streaming,
            missing=missing,
        )
        if validation_fraction is not None:  # both were one file: what is wrong with all of it is reported once
            known = set(wrong)
            wrong = [
                line
                for line in wrong
                if "data.validation" not in line or line.replace("data.validation", "data.train") not in known
            ]
        problems.lines += wrong
        for warning in warnings:
            warn(warning)
    return DataPlan(
        columns, splits, streamed, labels, max_length, cache_dir, missing, shuffle_rows, show_progress=show_progress
    )


def _put_given(asked: dict[str, Any], given: Mapping[str, Any], columns: Sequence[str], problems: Problems) -> bool:
    """Put rows that were made in Python in the place of what the config names; whether all of them can be read."""
    tables = {
        name: problems.collect("", as_dataset, rows, place=f"rows[{name!r}]", columns=columns)
        for name, rows in given.items()
    }
    for name, table in tables.items():
        split, part = parse_set(name)
        named = asked[split] if isinstance(asked[split], Mapping) else {}
        asked[split] = {**named, part: table} if part else table
    return None not in tables.values()


def take_splits(
    *,
    train: Any,
    validation: Any,
    test: Any,
    validation_fraction: float | None,
    files: TextFormat,
    limit: Mapping[str, int | None],
    given: Mapping[str, Any],
    seed: int,
    problems: Problems,
) -> dict[str, TokenisedSplit]:
    """The splits of a task that takes rows as they are. What is wrong is added to `problems`."""
    sets = [name for name in given if parse_set(name)[0] == "validation"]
    if validation_fraction is not None and sets:
        problems.lines.append(
            f"data.validation_fraction: {validation_fraction}: validation rows are given; set it to null"
        )
    specs = {"train": train, **name_sets("validation", validation), **name_sets("test", test)}
    splits: dict[str, TokenisedSplit] = {}
    for name, rows in (specs | dict(given)).items():
        split = (
            problems.collect("", take_rows, rows, name=name, place=f"rows[{name!r}]")
            if name in given
            else problems.collect("", _take_split, rows, name=name, files=files, seed=seed)
        )
        if split is not None:
            splits[name] = split
    if problems:
        return {}
    return cut_rows(splits, fraction=validation_fraction, limit=limit, seed=seed)


def _take_split(spec: Any, *, name: str, files: TextFormat, seed: int) -> TokenisedSplit:
    """Rows of files, or of a function at a dotted path."""
    if not isinstance(spec, str) or is_file_spec(spec, hub=False):
        found = find_files([spec] if isinstance(spec, str) else list(spec), key=f"data.{name}")
        split = read_files(found, split=name, texts=(), label=None, keeps_all=True, text_format=files)
        return take_rows(split.rows, name=name, place=name, origins=split.origins, fingerprint=split.fingerprint)
    rows = call_rows_function(spec, split=name, seed=seed)
    return take_rows(rows, name=name, place=f"data.{name}={spec}")
