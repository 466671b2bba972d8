"""The section `data`: every split is read and checked, then encoded."""

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
    """Splits that were read and checked.

    splits: raw rows by split. streamed: the training split where it is streamed; `splits` then holds its first rows.
    sources: those of a mixture that is streamed; `splits` then holds no training rows.
    labels: the classes; None without a label, or where they could not be found. num_numbers: that each row has to
    predict; None if it has none.
    """

    section: DataSection
    splits: Mapping[str, Split]
    streamed: ShardedSplit | None
    labels: LabelNames | None
    show_progress: bool
    sources: Sequence[Source] = ()
    num_numbers: int | None = None

    @property
    def output_names(self) -> list[str] | None:
        """The names of the classes, or of several numbers: of their columns, or 0, 1, ...; None if there are none."""
        if self.labels is not None:
            return self.labels.names
        if self.num_numbers in (None, 1):
            return None
        return list(self.columns.joined.get(self.columns.numbers or "", map(str, range(self.num_numbers))))

    @property
    def columns(self) -> Columns:
        return self.section.columns

    def count_classes(self) -> np.ndarray | None:
        """How many rows of the training split have each class, `[C]`; None without classes, or for a stream.

        Of words, how many have it.
        """
        if self.labels is None or self.columns.label is None or self.streamed is not None or self.sources:
            return None
        train = self.splits["train"]
        if self.columns.has_class_lists and not self.columns.has_word_tags:
            rows = train.rows.with_format(None)[self.columns.label]
            return self.labels.count(Counter(chain.from_iterable(set(labels or ()) for labels in rows)))
        return self.labels.count(count_raw_labels(train, self.columns))

    def list_numbers(self) -> np.ndarray:
        """The numbers of all training rows, `[N]`, or `[N, K]` if a row has several."""
        assert self.columns.numbers is not None, "the task reads a column of the kind numbers"
        values = read_values(self.splits["train"].rows, self.columns.numbers)
        return np.array([read_numbers(value) for value in values], dtype=np.float64)

    def iterate_texts(self) -> Iterator[str]:
        """Every text of the training split, one after the other, without holding all of them."""
        names = self.columns.of_kind(*KINDS_OF_TEXTS)
        for batch in self.splits["train"].rows.select_columns(names).iter(batch_size=1000):
            for name in names:
                for value in batch[name]:
                    yield from list_texts(value)

    def encode(
        self, task: Encoder, tokenizer: Any, *, counts_stream: bool, say: Say
    ) -> tuple[dict[str, TokenisedSplit], TrainStream | None, dict[str, SplitFacts]]:
        """The rows as the model reads them, and what is known of them; of a stream its first rows are described.

        counts_stream: the rows of a streamed split are counted, because its epochs are.
        """
        section = self.section
        beside = {"show_progress": self.show_progress, "say": say, "num_numbers": self.num_numbers}
        encoding = self._make_encoding(task, tokenizer, self.columns, **beside)
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
        """Rows that are held in memory, as the model reads them, and which of them were kept; None: all of them.

        labelled: they have labels; else these are left out. Raises UserError with everything that is wrong with them.
        """
        columns = self.columns if labelled else self.columns.without_targets()
        table = as_dataset(rows, place="rows", columns=columns.stored)
        named = given_split(table, name="rows", columns=columns)
        try:
            split, lines = settle_missing(named, columns, missing=self.section.missing)
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
        kept = split.origins.numbers - 1 if len(split.rows) < len(named.rows) else None  # numbers count from 1
        encoding = self._make_encoding(task, tokenizer, columns, evaluates=True)
        encoded = tokenise_split(name_labels_of_rows(split, columns), encoding)
        return encoded, None if kept is None else KeptRows(kept, len(named.rows))

    def _make_encoding(self, task: Encoder, tokenizer: Any, columns: Columns, **beside: Any) -> Encoding:
        labels = None if columns.label is None else self.labels
        return Encoding(task, tokenizer, columns, labels, self.section.max_length, self.section.cache_dir, **beside)


def plan_data(
    section: DataSection, *, given: Mapping[str, Any], show_progress: bool, say: Say, warn: Say, problems: Problems
) -> DataPlan:
    """Read and check the splits of the section `data`.

    What is wrong is added to `problems`, and the plan holds what could be read all the same: labels tell more problems.

    Args:
        given: rows that were made in Python, by split or set, in the place of what the config names.
    """
    known = len(problems.lines)
    put = _put_given(section, given, problems)
    if put is None:
        return DataPlan(section, {}, None, None, show_progress)
    splits, streamed, wrong = read_splits(put, show_progress=show_progress, say=say)
    problems.lines += wrong
    sources: Sequence[Source] = ()
    if section.mixture and section.streaming:
        sources = problems.collect("", read_sources, put) or ()
        labels, num_numbers = _check_sources(sources, put, warn=warn, problems=problems)
    else:
        labels, num_numbers = None, find_num_numbers(splits, section.columns)
    wrong, warnings, labels = check_splits(
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
    if section.cuts_validation:  # both were one file: what is wrong with all of it is told once
        all_wrong = set(wrong)
        wrong = [
            line
            for line in wrong
            if "data.validation" not in line or line.replace("data.validation", "data.train") not in all_wrong
        ]
    problems.lines += wrong
    for warning in warnings:
        warn(warning)
    if len(problems.lines) == known:
        splits = {name: name_labels_of_rows(split, section.columns) for name, split in splits.items()}
        sources = [
            dataclasses.replace(source, split=name_labels_of_rows(source.split, source.columns)) for source in sources
        ]
    return DataPlan(section, splits, streamed, labels, show_progress, sources, num_numbers)


def _check_sources(
    sources: Sequence[Source], section: DataSection, *, warn: Say, problems: Problems
) -> tuple[LabelNames | None, int | None]:
    """Check the first rows of each source of a mixture -> the classes, and how many numbers a row has to predict.

    Both must be the same in all sources; None where there are none, or they could not be found. What is wrong is added
    to `problems`.
    """
    found: dict[str, LabelNames] = {}
    counts: dict[str, int] = {}
    for source in sources:
        num_numbers = find_num_numbers({"train": source.split}, source.columns)
        counts |= {} if num_numbers is None else {source.name: num_numbers}
        wrong, warnings, labels = check_splits(
            {"train": source.split},
            columns=source.columns,
            label_names=section.label_names,
            is_streamed=True,
            missing=section.missing,
            num_numbers=num_numbers,
        )
        problems.lines += [name_source(line, source.name) for line in wrong]
        for warning in warnings:
            warn(name_source(warning, source.name))
        if labels is not None:
            found[source.name] = labels
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {number}" for name, number in counts.items())
        problems.lines.append(f"data.mixture: sources have unlike many numbers a row: {told}; write them alike")
    first = next(iter(found), "")
    for name, labels in found.items():
        here, there = _spell(labels), _spell(found[first])
        if here != there:
            problems.lines.append(
                f"data.mixture: the labels of {name} stand for {enumerate_some(here, at_most=_LABELS_SHOWN)}, those of "
                f"{first} for {enumerate_some(there, at_most=_LABELS_SHOWN)}; write them alike"
            )
    return found.get(first), next(iter(counts.values()), None)


def _spell(labels: LabelNames) -> list[str]:
    """`["'good' = good", "'bad' = bad"]`: what stands in the data, and the classes."""
    by_id = sorted(labels.ids.items(), key=lambda pair: pair[1])
    return [f"{raw!r} = {labels.names[number]}" for raw, number in by_id]


def _put_given(section: DataSection, given: Mapping[str, Any], problems: Problems) -> DataSection | None:
    """Put rows that were made in Python in the place of what the config names; None where some cannot be read."""
    specs = {"train": section.train, "validation": section.validation, "test": section.test}
    are_good = True
    if "train" in given and section.mixture:
        problems.lines.append("data.mixture: training rows are given, which would take its place; set it to []")
    for name, rows in given.items():
        split, part = parse_set(name)
        columns = None if section.filter or section.map else section.columns_of(split).stored  # functions are given all
        table = problems.collect("", as_dataset, rows, place=f"rows[{name!r}]", columns=columns)
        are_good &= table is not None
        named = specs[split] if isinstance(specs[split], Mapping) and not is_query(specs[split]) else {}
        specs[split] = {**named, part: table} if part else table
    return dataclasses.replace(section, **specs) if are_good else None


def take_splits(section: DataSection, *, given: Mapping[str, Any], problems: Problems) -> dict[str, TokenisedSplit]:
    """The splits of a task that takes rows as they are. What is wrong is added to `problems`."""
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
        found, problems = load_hub_splits(name, config=section.config, specs={split: spec})
        refuse(problems)
        read = found[split]
    else:
        read = read_source(spec, split=split, columns=None, text_format=section.files)
    return take_rows(read.rows, name=split, place=split, origins=read.origins, fingerprint=read.fingerprint)
