"""The section `data`: every split is read and checked, then encoded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer_loop.config.named_sets import name_sets, parse_set
from trainer_loop.data.checks import check_splits
from trainer_loop.data.columns import Columns
from trainer_loop.data.files import find_files, is_file_spec, read_files
from trainer_loop.data.given_rows import as_dataset, cut_rows, take_rows
from trainer_loop.data.hub import load_hub_splits
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
        declared = self.columns.declared
        of_texts = [name for own, name in self.columns.names.items() if declared[own].kind in ("text", "words")]
        names = list(dict.fromkeys(of_texts))
        for batch in self.splits["train"].rows.select_columns(names).iter(batch_size=1000):
            for name in names:
                for value in batch[name]:
                    yield from [value] if isinstance(value, str) else value

    def encode(
        self, task: Encoder, tokenizer: Any, *, counts_stream: bool, seed: int, say: Say
    ) -> tuple[dict[str, TokenisedSplit], TrainStream | None]:
        """The rows as the model reads them, and a report of the data; of a stream, of its first rows.

        counts_stream: the rows of a streamed split are counted, because its epochs are.
        """
        asked: dict[str, Any] = {
            "task": task,
            "tokenizer": tokenizer,
            "columns": self.columns,
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
        for line in describe_data(encoded, splits=splits, columns=self.columns, label_names=self.labels):
            say(line)
        return encoded, stream

    def encode_rows(
        self, rows: Any, task: Encoder, tokenizer: Any, *, labelled: bool, say: Say
    ) -> tuple[TokenisedSplit, KeptRows | None]:
        """Rows that are held in memory, as the model reads them, and which of them were kept; None: all of them.

        labelled: they have labels; else these are left out. Raises UserError with everything that is wrong with them.
        """
        columns = self.columns if labelled else self.columns.without_targets()
        table = as_dataset(rows, place="rows", columns=columns.all)
        named = given_split(table, name="rows", columns=columns)
        try:
            split, lines = settle_missing(named, Holes.of(columns), missing=self.missing)
            problems, _, _ = check_splits(
                {"rows": split}, columns=columns, label_names=None, missing=self.missing, known=self.labels
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
            columns=columns,
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
    columns: Columns,
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
        columns: Bound to the task, see `bind_columns`.
        given: rows that were made in Python, by split or set, in the place of what the config names.
    """
    del num_workers  # it changes how rows are loaded, not which
    asked: dict[str, Any] = {"train": train, "validation": validation, "test": test}
    splits: dict[str, Split] = {}
    streamed: ShardedSplit | None = None
    labels: LabelNames | None = None
    if _put_given(asked, given, columns.all, problems):
        asked |= {
            "name": name,
            "config": config,
            "limit": limit,
            "columns": columns,
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
            splits, columns=columns, label_names=label_names, is_streamed=streaming, missing=missing
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
    name: str | None,
    config: str | None,
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
    for split, rows in (specs | dict(given)).items():
        taken = (
            problems.collect("", take_rows, rows, name=split, place=f"rows[{split!r}]")
            if split in given
            else problems.collect("", _take_split, rows, split=split, name=name, config=config, files=files, seed=seed)
        )
        if taken is not None:
            splits[split] = taken
    if problems:
        return {}
    return cut_rows(splits, fraction=validation_fraction, limit=limit, seed=seed)


def _take_split(
    spec: Any, *, split: str, name: str | None, config: str | None, files: TextFormat, seed: int
) -> TokenisedSplit:
    """Rows of a hub data set, of files, or of a function at a dotted path."""
    if isinstance(spec, str) and not is_file_spec(spec, hub=name is not None):
        if name is None:
            rows = call_rows_function(spec, split=split, seed=seed)
            return take_rows(rows, name=split, place=f"data.{split}={spec}")
        found, problems = load_hub_splits(name, config=config, specs={split: spec})
        if problems:
            raise UserError(problems)
        read = found[split]
    else:
        paths = find_files([spec] if isinstance(spec, str) else list(spec), key=f"data.{split}")
        read = read_files(paths, split=split, columns=None, text_format=files)
    return take_rows(read.rows, name=split, place=split, origins=read.origins, fingerprint=read.fingerprint)
