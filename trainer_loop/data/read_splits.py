"""Read the raw rows of all splits as the section `data` specifies, and select the rows that are used."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from trainer_loop.config.named_sets import name_sets, parse_set
from trainer_loop.data.choose_rows import cut_validation, limit_splits
from trainer_loop.data.duplicates import drop_duplicates
from trainer_loop.data.files import find_files, is_file_spec, open_files
from trainer_loop.data.folders import is_image_folder
from trainer_loop.data.hub import load_hub_splits, stream_hub_splits
from trainer_loop.data.local_rows import check_spec, read_local
from trainer_loop.data.missing import settle_missing
from trainer_loop.data.mixture_sources import Source, bind_own_columns, join_sources, name_own_functions, naming_source
from trainer_loop.data.plain_columns import with_plain_columns
from trainer_loop.data.row_functions import RowFunctions, load_functions
from trainer_loop.data.section import DataSection, Say
from trainer_loop.data.shards import ShardedSplit
from trainer_loop.data.split import Split
from trainer_loop.data.stream_plan import read_head
from trainer_loop.data.wording import enumerate_names
from trainer_loop.errors import Problems, UserError, refuse
from trainer_loop.runtime.quiet import progress_bars

_SPLITS = ("train", "validation", "test")


def read_splits(
    section: DataSection, *, show_progress: bool = False, say: Say = lambda line: None
) -> tuple[dict[str, Split], ShardedSplit | None, list[str]]:
    """Read the raw rows of every split in the section.

    Only the first rows of a streamed training split are read. A streamed mixture is not read here, see `read_sources`.

    Args:
        say: Receives lines of text about dropped rows.

    Returns:
        The splits that could be read, the training split if it is streamed, and problems.
    """
    problems = Problems()
    functions = problems.collect("", load_functions, section.filter, section.map, say)
    if functions is None:
        return {}, None, problems.lines
    if not section.streaming:
        problems.lines += _check_keys(section)
    raw, streamed = _read(section, functions, problems, show_progress=show_progress)
    splits = _settle(raw, section, problems, say)
    if section.mixture and not section.streaming:
        with progress_bars(shown=show_progress):
            mixed = problems.collect("", lambda: join_sources(read_sources(section, say=say), section.train_columns))
        splits |= {} if mixed is None else {"train": mixed}
    splits = _cut(splits, section, problems, say)
    if streamed is not None:
        head = problems.collect("", read_head, streamed, columns=section.train_columns, missing=section.missing)
        splits = ({} if head is None else {"train": head}) | splits
    return splits, streamed, problems.lines


def _read(
    section: DataSection, functions: RowFunctions, problems: Problems, *, show_progress: bool
) -> tuple[dict[str, Split], ShardedSplit | None]:
    """Read the rows of each split, and open the training split if it is streamed. A mixture is not read here."""
    specs = {**name_sets("validation", section.validation), **name_sets("test", section.test)}
    streams_train = section.streaming and not section.mixture
    if not section.streaming and not section.mixture:
        specs = {"train": section.train} | specs
    on_hub = {split: spec for split, spec in specs.items() if section.name is not None and _is_hub_spec(spec)}
    hub_splits, lines = dict[str, Split](), list[str]()
    with progress_bars(shown=show_progress):
        splits = {
            split: problems.collect("", read_local, spec, split, section, functions)
            for split, spec in specs.items()
            if spec is not None and split not in on_hub
        }
        if streams_train and section.name is not None and _is_hub_spec(section.train):
            streamed, hub_splits, lines = _stream_from_hub(section, section.name, on_hub, functions)
        else:
            streamed = problems.collect("", _open_stream, section, functions) if streams_train else None
            if section.name is not None and on_hub:
                hub_splits, lines = load_hub_splits(section.name, config=section.config, specs=on_hub)
    problems.lines += lines
    for split, rows in hub_splits.items():
        splits[split] = problems.collect("", functions.over_split, rows, columns=section.columns_of(split))
    return {split: rows for split, rows in splits.items() if rows is not None}, streamed


def _stream_from_hub(
    section: DataSection, name: str, specs: Mapping[str, Any], functions: RowFunctions
) -> tuple[ShardedSplit | None, dict[str, Split], list[str]]:
    """Return the streamed training split of the hub data set `name`, its other splits in memory, and problems."""
    columns = section.train_columns.stored
    streamed, others, problems = stream_hub_splits(
        name, config=section.config, train=section.train, specs=specs, columns=None if functions else columns
    )
    if streamed is not None:
        shards = [functions.over_streamed(shard, columns=columns) for shard in streamed.shards]
        streamed = functions.mark_stream(replace(streamed, shards=shards))
    return streamed, others, problems


def _cut(splits: dict[str, Split], section: DataSection, problems: Problems, say: Say) -> dict[str, Split]:
    """Select the rows: drop duplicates, cut off validation rows, and apply `limit`. The splits are in a fixed order."""
    if "train" in splits and not problems and any(section.deduplicated_sources):
        whole = [number for number, is_deduplicated in enumerate(section.deduplicated_sources) if not is_deduplicated]
        deduplicated = problems.collect("", drop_duplicates, splits, section.columns, whole=whole)
        if deduplicated is not None:
            splits = splits | {"train": deduplicated[0]}
            say(f"train: {deduplicated[1]}")
    if not section.streaming and section.cuts_validation and section.validation is None:
        splits = splits | _cut_validation(splits, section, problems)
    in_order = sorted(splits, key=lambda split: _SPLITS.index(parse_set(split)[0]))
    splits = limit_splits({split: splits[split] for split in in_order}, section.limit, seed=section.seed)
    if section.mixture and "train" in splits:
        problems.lines += _find_lost_sources(splits["train"], section)
    return splits


def _find_lost_sources(train: Split, section: DataSection) -> list[str]:
    """Return a problem for each source of a mixture that has no training row left after the selection of rows."""
    left = set(np.unique(train.origins.source_of_rows).tolist())
    return [
        f"data.mixture: {entry['name']}: no training row is left of it; see data.validation_fraction, "
        "data.split_by and data.limit.train"
        for number, entry in enumerate(section.mixture)
        if number not in left
    ]


def read_sources(section: DataSection, *, say: Say = lambda line: None) -> list[Source]:
    """Read the sources of a mixture; of streamed sources only the first rows. Raises UserError with all problems."""
    sources, problems = list[Source](), list[str]()
    for entry in section.mixture:
        try:
            with naming_source(str(entry["name"])):
                sources.append(_read_source(section, entry, say))
        except UserError as error:
            problems += [name_own_functions(line, entry) for line in error.problems]
    refuse(problems)
    return sources


def _read_source(section: DataSection, entry: Mapping[str, Any], say: Say) -> Source:
    """Read the training rows of one source in the same way as those of a run without a mixture."""
    name, columns = str(entry["name"]), bind_own_columns(entry.get("columns", {}), section.train_columns)
    alone = DataSection(
        train=entry["train"],
        columns=columns,
        seed=section.seed,
        name=entry.get("dataset"),
        config=entry.get("config"),
        streaming=section.streaming,
        files=section.files,
        missing=section.missing,
        filter=entry.get("filter", section.filter),
        map=entry.get("map", section.map),
    )
    splits, stream, problems = read_splits(alone, say=lambda line: say(f"{name}: {line}"))
    refuse(problems)
    train = splits["train"]
    present = list(train.columns or train.rows.column_names)
    stored = {part: role for role, name in columns.names.items() for part in columns.joined.get(name, [name])}
    if missing := [f"{part!r} for {role}" for part, role in stored.items() if part not in present]:
        message = f"no column {', '.join(missing)}; it has {enumerate_names(present)}: set its columns"
        raise UserError(f"data.train: {message}")
    return Source(name, float(entry["weight"]), float(entry.get("loss_weight", 1)), columns, train, stream)


def _check_keys(section: DataSection) -> list[str]:
    problems: list[str] = []
    fraction = section.validation_fraction
    if section.train is None and not section.mixture:
        problems.append("data.train=null: a split, a file or a dotted path is needed")
    for key in ("validation_fraction", "fold"):
        if getattr(section, key) is not None and section.validation is not None:
            problems.append(f"data.validation and data.{key} are both given; set one to null")
    if fraction is not None and not 0 < fraction < 1:
        problems.append(f"data.validation_fraction={fraction}: it must lie between 0 and 1; null for none")
    return problems


def _settle(splits: Mapping[str, Split], section: DataSection, problems: Problems, say: Say) -> dict[str, Split]:
    """Convert the columns of the splits to plain types, and drop or fill rows with holes."""
    settled: dict[str, Split] = {}
    for name, split in splits.items():
        columns = section.columns_of(name)
        plain = with_plain_columns(split, columns)
        result = problems.collect("", settle_missing, plain, columns, missing=section.missing)
        if result is not None:
            settled[name], lines = result
            for line in lines:
                say(f"{name}: {line}")
    return settled


def _cut_validation(splits: Mapping[str, Split], section: DataSection, problems: Problems) -> dict[str, Split]:
    """Return the splits `train` and `validation` cut from `train`; empty if it cannot be cut."""
    train, group = splits.get("train"), section.split_by
    if train is not None and len(train.rows) < 2 and section.fold is None:
        problems.lines.append("data.validation_fraction: data.train has 1 row, which cannot be divided")
        return {}
    if train is None or (group is not None and group not in train.rows.column_names):
        return {}  # the check of the rows reports the problem
    cut = problems.collect(
        "",
        cut_validation,
        train,
        fraction=section.validation_fraction,
        fold=section.fold,
        label=section.columns.single_label,
        group=group,
        seed=section.seed,
    )
    return {} if cut is None else {"train": cut[0], "validation": cut[1]}


def _is_hub_spec(spec: Any) -> bool:
    """Return whether a spec is a split of the hub data set, if one is named."""
    return isinstance(spec, str) and not is_file_spec(spec, hub=True)


def _open_stream(section: DataSection, functions: RowFunctions) -> ShardedSplit:
    spec = section.train
    if isinstance(spec, Split):
        raise UserError("data.streaming=true: rows that were made in Python are not streamed; set data.streaming=false")
    specs = check_spec(spec, key="data.train")
    if isinstance(spec, str) and not is_file_spec(spec, hub=False):
        raise UserError(
            f"data.train={spec}: only files and hub splits are streamed, and this is neither; "
            "write the rows to a file, or set data.streaming=false"
        )
    if len(specs) == 1 and is_image_folder(specs[0]):
        raise UserError(f"data.train={specs[0]}: a folder of images is not streamed; set data.streaming=false")
    files = find_files(specs, key="data.train", split="train")
    return open_files(files, columns=section.train_columns.stored, text_format=section.files, functions=functions)
