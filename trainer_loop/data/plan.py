"""Plan the section `data`: read and check every split, then encode it."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from trainer_loop.config.named_sets import is_query, name_sets, parse_set
from trainer_loop.data.checks import check_splits
from trainer_loop.data.choose_rows import cut_validation, limit_splits
from trainer_loop.data.columns import Columns
from trainer_loop.data.dataset_columns import read_values
from trainer_loop.data.files import is_file_spec
from trainer_loop.data.given_rows import as_dataset, take_rows
from trainer_loop.data.hub import load_hub_splits
from trainer_loop.data.labels import LabelNames, count_raw_labels
from trainer_loop.data.loader import KeptRows
from trainer_loop.data.local_rows import call_rows_function, given_split, read_source
from trainer_loop.data.missing import settle_missing
from trainer_loop.data.mixture_sources import Source, name_source
from trainer_loop.data.plain_columns import find_num_numbers, name_labels_of_rows
from trainer_loop.data.read_splits import read_sources, read_splits
from trainer_loop.data.section import DataSection, Say
from trainer_loop.data.shards import ShardedSplit
from trainer_loop.data.split import Split, TokenisedSplit
from trainer_loop.data.split_facts import SplitFacts, describe_data, measure_data
from trainer_loop.data.stream_plan import TrainStream, prepare_mixture, prepare_stream
from trainer_loop.data.tokenise import Encoder, Encoding, tokenise_split
from trainer_loop.data.values import KINDS_OF_TEXTS, list_texts, read_numbers
from trainer_loop.data.wording import enumerate_some
from trainer_loop.errors import Problems, UserError, refuse

_LABELS_SHOWN = 10


@dataclass(frozen=True)
class DataPlan:
    """Splits that were read and checked."""

    section: DataSection
    splits: Mapping[str, Split]  # raw rows by split; of a streamed training split the first rows
    streamed: ShardedSplit | None  # the training split, if it is streamed
    labels: LabelNames | None  # the classes; None without a label, or if they could not be found
    show_progress: bool
    sources: Sequence[Source] = ()  # of a streamed mixture; `splits` then has no training split
    num_numbers: int | None = None  # the number of targets of a row in regression; None without such a column

    @property
    def output_names(self) -> list[str] | None:
        """The names of the classes, or of several numbers (their columns, or 0, 1, ...); None if there are none."""
        if self.labels is not None:
            return self.labels.names
        if self.num_numbers in (None, 1):
            return None
        return list(self.columns.joined.get(self.columns.numbers or "", map(str, range(self.num_numbers))))

    @property
    def columns(self) -> Columns:
        return self.section.columns

    def count_classes(self) -> np.ndarray | None:
        """Return the number of training rows (or words) of each class, `[C]`; None without classes or for a stream."""
        if self.labels is None or self.columns.label is None or self.streamed is not None or self.sources:
            return None
        train = self.splits["train"]
        if self.columns.has_class_lists and not self.columns.has_word_tags:
            rows = train.rows.with_format(None)[self.columns.label]
            return self.labels.count(Counter(chain.from_iterable(set(labels or ()) for labels in rows)))
        return self.labels.count(count_raw_labels(train, self.columns))

    def list_numbers(self) -> np.ndarray:
        """Return the numbers of all training rows, `[N]`, or `[N, K]` if a row has several."""
        assert self.columns.numbers is not None, "the task reads a column of the kind numbers"
        values = read_values(self.splits["train"].rows, self.columns.numbers)
        return np.array([read_numbers(value) for value in values], dtype=np.float64)

    def iterate_texts(self) -> Iterator[str]:
        """Iterate over the texts of the training split without loading all of them into memory."""
        names = self.columns.of_kind(*KINDS_OF_TEXTS)
        for batch in self.splits["train"].rows.select_columns(names).iter(batch_size=1000):
            for name in names:
                for value in batch[name]:
                    yield from list_texts(value)

    def encode(
        self, task: Encoder, tokenizer: Any, *, counts_stream: bool, say: Say
    ) -> tuple[dict[str, TokenisedSplit], TrainStream | None, dict[str, SplitFacts]]:
        """Encode all splits.

        Args:
            counts_stream: Count the rows of a streamed split, for a run that is measured in epochs.

        Returns:
            The encoded splits by name, the training stream if there is one, and facts about each encoded split.
        """
        section = self.section
        options = {"show_progress": self.show_progress, "say": say, "num_numbers": self.num_numbers}
        encoding = self._make_encoding(task, tokenizer, self.columns, **options)
        splits, stream = dict(self.splits), None
        if self.sources:
            stream = prepare_mixture(self.sources, encoding, section)
        elif self.streamed is not None:
            stream = prepare_stream(self.streamed, splits.pop("train"), encoding, section, is_counted=counts_stream)
        evaluating = dataclasses.replace(encoding, evaluates=True)
        encoded = {
            name: tokenise_split(split, encoding, weight=section.weight)
            if name == "train"
            else tokenise_split(split, evaluating)
            for name, split in splits.items()
        }
        facts = measure_data(encoded, splits=splits, columns=self.columns, label_names=self.labels)
        for line in describe_data(facts):
            say(line)
        return encoded, stream, facts

    def encode_rows(
        self, rows: Any, task: Encoder, tokenizer: Any, *, labelled: bool, say: Say
    ) -> tuple[TokenisedSplit, KeptRows | None]:
        """Check and encode in-memory rows.

        Args:
            labelled: Read the labels too; if false, they are left out.

        Returns:
            The encoded rows, and which input rows were kept; None: all.

        Raises:
            UserError: All problems of the rows.
        """
        columns = self.columns if labelled else self.columns.without_targets()
        table = as_dataset(rows, place="rows", columns=columns.stored)
        raw = given_split(table, name="rows", columns=columns)
        try:
            split, lines = settle_missing(raw, columns, missing=self.section.missing)
            problems, _, _ = check_splits(
                {"rows": split},
                columns=columns,
                label_names=None,
                missing=self.section.missing,
                known=self.labels,
                num_numbers=self.num_numbers,
            )
            refuse(problems)
        except UserError as error:
            raise UserError([problem.replace("data.rows", "rows") for problem in error.problems]) from error
        for line in lines:
            say(line)
        kept = split.origins.numbers - 1 if len(split.rows) < len(raw.rows) else None  # numbers count from 1
        encoding = self._make_encoding(task, tokenizer, columns, evaluates=True)
        encoded = tokenise_split(name_labels_of_rows(split, columns), encoding)
        return encoded, None if kept is None else KeptRows(kept, len(raw.rows))

    def _make_encoding(self, task: Encoder, tokenizer: Any, columns: Columns, **options: Any) -> Encoding:
        labels = None if columns.label is None else self.labels
        return Encoding(task, tokenizer, columns, labels, self.section.max_length, self.section.cache_dir, **options)


def plan_data(
    section: DataSection, *, given: Mapping[str, Any], show_progress: bool, say: Say, warn: Say, problems: Problems
) -> DataPlan:
    """Read and check the splits of the section `data`.

    Problems are added to `problems`. The plan still has all that could be read, because later checks need the labels.

    Args:
        given: In-memory rows by split or set; they replace the specs in the config.
    """
    num_earlier = len(problems.lines)
    to_read = _replace_specs(section, given, problems)
    if to_read is None:
        return DataPlan(section, {}, None, None, show_progress)
    splits, streamed, lines = read_splits(to_read, show_progress=show_progress, say=say)
    problems.lines += lines
    sources: Sequence[Source] = ()
    if section.mixture and section.streaming:
        sources = problems.collect("", read_sources, to_read) or ()
        labels, num_numbers = _check_sources(sources, to_read, warn=warn, problems=problems)
    else:
        labels, num_numbers = None, find_num_numbers(splits, section.columns)
    lines, warnings, labels = check_splits(
        splits,
        columns=section.columns,
        train_columns=section.train_columns,
        label_names=section.label_names,
        is_streamed=section.streaming,
        missing=section.missing,
        known=labels,
        num_numbers=num_numbers,
        cuts=section.cuts,
    )
    if section.cuts_validation:  # both splits come from the same rows: a problem of both is reported once
        all_lines = set(lines)
        lines = [
            line
            for line in lines
            if "data.validation" not in line or line.replace("data.validation", "data.train") not in all_lines
        ]
    problems.lines += lines
    for warning in warnings:
        warn(warning)
    if len(problems.lines) == num_earlier:
        splits = {name: name_labels_of_rows(split, section.columns) for name, split in splits.items()}
        sources = [
            dataclasses.replace(source, split=name_labels_of_rows(source.split, source.columns)) for source in sources
        ]
    return DataPlan(section, splits, streamed, labels, show_progress, sources, num_numbers)


def _check_sources(
    sources: Sequence[Source], section: DataSection, *, warn: Say, problems: Problems
) -> tuple[LabelNames | None, int | None]:
    """Check the first rows of each source of a mixture. Problems are added to `problems`.

    Returns:
        The classes, and the number of regression targets of a row, which must be the same in all sources. None if
        there are none, or they could not be labels_by_source.
    """
    labels_by_source: dict[str, LabelNames] = {}
    counts: dict[str, int] = {}
    for source in sources:
        num_numbers = find_num_numbers({"train": source.split}, source.columns)
        counts |= {} if num_numbers is None else {source.name: num_numbers}
        lines, warnings, labels = check_splits(
            {"train": source.split},
            columns=source.columns,
            label_names=section.label_names,
            is_streamed=True,
            missing=section.missing,
            num_numbers=num_numbers,
        )
        problems.lines += [name_source(line, source.name) for line in lines]
        for warning in warnings:
            warn(name_source(warning, source.name))
        if labels is not None:
            labels_by_source[source.name] = labels
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{name} {number}" for name, number in counts.items())
        problems.lines.append(f"data.mixture: sources have unlike many numbers a row: {listing}; write them alike")
    first = next(iter(labels_by_source), "")
    for name, labels in labels_by_source.items():
        here, there = _spell(labels), _spell(labels_by_source[first])
        if here != there:
            problems.lines.append(
                f"data.mixture: the labels of {name} stand for {enumerate_some(here, at_most=_LABELS_SHOWN)}, those of "
                f"{first} for {enumerate_some(there, at_most=_LABELS_SHOWN)}; write them alike"
            )
    return labels_by_source.get(first), next(iter(counts.values()), None)


def _spell(labels: LabelNames) -> list[str]:
    """Return the value in the data and the class for each label: `["'good' = good", "'bad' = bad"]`."""
    by_id = sorted(labels.ids.items(), key=lambda pair: pair[1])
    return [f"{raw!r} = {labels.names[number]}" for raw, number in by_id]


def _replace_specs(section: DataSection, given: Mapping[str, Any], problems: Problems) -> DataSection | None:
    """Return the section with in-memory rows instead of the specs in the config; None if some cannot be read."""
    specs = {"train": section.train, "validation": section.validation, "test": section.test}
    are_valid = True
    if "train" in given and section.mixture:
        problems.lines.append("data.mixture: training rows are given, which would take its place; set it to []")
    for name, rows in given.items():
        split, part = parse_set(name)
        columns = None if section.filter or section.map else section.columns_of(split).stored  # functions read all
        table = problems.collect("", as_dataset, rows, place=f"rows[{name!r}]", columns=columns)
        are_valid &= table is not None
        sets = specs[split] if isinstance(specs[split], Mapping) and not is_query(specs[split]) else {}
        specs[split] = {**sets, part: table} if part else table
    return dataclasses.replace(section, **specs) if are_valid else None


def take_splits(section: DataSection, *, given: Mapping[str, Any], problems: Problems) -> dict[str, TokenisedSplit]:
    """Return the splits of a task that takes rows as they are. Problems are added to `problems`."""
    fraction, fold, seed = section.validation_fraction, section.fold, section.seed
    if any(parse_set(name)[0] == "validation" for name in given):
        for key, value in (("validation_fraction", fraction), ("fold", fold)):
            if value is not None:
                problems.lines.append(f"data.{key}: {value}: validation rows are given; set it to null")
    specs = {"train": section.train, **name_sets("validation", section.validation), **name_sets("test", section.test)}
    splits: dict[str, TokenisedSplit] = {}
    for split, rows in (specs | dict(given)).items():
        taken = (
            problems.collect("", take_rows, rows, name=split, place=f"rows[{split!r}]")
            if split in given
            else problems.collect("", _take_split, rows, split, section)
        )
        if taken is not None:
            splits[split] = taken
    if problems:
        return {}
    if section.cuts_validation:
        cut = problems.collect("", cut_validation, splits["train"], fraction=fraction, fold=fold, label=None, seed=seed)
        splits |= {} if cut is None else {"train": cut[0], "validation": cut[1]}
    return limit_splits(splits, section.limit, seed=seed)


def _take_split(spec: Any, split: str, section: DataSection) -> TokenisedSplit:
    name = section.name
    if isinstance(spec, str) and not is_file_spec(spec, hub=name is not None):
        if name is None:
            rows = call_rows_function(spec, split=split, seed=section.seed)
            return take_rows(rows, name=split, place=f"data.{split}={spec}")
        hub_splits, problems = load_hub_splits(name, config=section.config, specs={split: spec})
        refuse(problems)
        raw = hub_splits[split]
    else:
        raw = read_source(spec, split=split, columns=None, text_format=section.files)
    return take_rows(raw.rows, name=split, place=split, origins=raw.origins, fingerprint=raw.fingerprint)
