"""The keys of the section `data`: which rows are read, how, and which of them are used."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer_loop.data.columns import Columns
from trainer_loop.data.text_format import DEFAULT_FORMAT, TextFormat

Say = Callable[[str], None]


@dataclass(frozen=True)
class DataSection:
    """The config keys of the section `data`, and the seed.

    A split is named by
      - the name of a split of the hub data set `name`, or a slice of one (`train[:1000]`);
      - a file, a glob, a folder that `save_to_disk` wrote, or a list of them: whatever has a known extension, a slash
        or a `*` or `?`, or is there; or a folder of images in folders, see `read_image_folder`;
      - a query of a database, `{"sql": ..., "connection": ...}`, see `read_query`;
      - where `name` is None, else, the dotted path of a function without required parameters (`seed` is handed in
        where it has one) that returns a datasets.Dataset or an iterable of dicts;
      - rows that were made in Python, see `as_dataset`.
    validation, test: one of these, or several by name; those are the splits `validation.matched` and the like.
    filter, map: dotted paths of functions of a row, see `RowFunctions`; they are given all columns, of all splits.
    files: how text files are written. missing: see `settle_missing`. columns: bound to the task, see `bind_columns`.
    deduplicate: see `drop_duplicates`; before a part is cut off for validation. mixture: its sources, as in the config;
    each reads its rows by its own filter, map, columns and deduplicate, where it has them.
    `validation_fraction` of the training rows, or the part `fold`, become the validation split; after that `limit`
    samples each split.
    """

    train: Any
    columns: Columns
    seed: int
    validation: Any = None
    test: Any = None
    name: str | None = None
    config: str | None = None
    validation_fraction: float | None = None
    fold: str | None = None
    streaming: bool = False
    shuffle_rows: int = 1
    files: TextFormat = DEFAULT_FORMAT
    missing: str = "refuse"
    limit: Mapping[str, int | None] = field(default_factory=dict)
    label_names: Any = None
    max_length: int = 512
    num_workers: int | str = 0  # changes how rows are loaded, not which
    cache_dir: str | None = None
    mixture: Sequence[Mapping[str, Any]] = ()
    weight: str | None = None
    sampling: str = "shuffle"  # changes the order of the rows, not which are read
    split_by: str | None = None
    filter: str | None = None
    map: str | None = None
    deduplicate: bool = False

    @property
    def train_columns(self) -> Columns:
        """The columns that are read of the training rows."""
        return self.columns.beside(weight=self.weight, group=self.split_by)

    @property
    def deduplicated_sources(self) -> list[bool]:
        """Whether duplicates are left out, of each source of the mixture, or of the only one."""
        return [entry.get("deduplicate", self.deduplicate) for entry in self.mixture] or [self.deduplicate]

    @property
    def cuts_validation(self) -> bool:
        """Whether a part of the training rows becomes the validation split."""
        fraction = self.validation_fraction
        return self.fold is not None or (fraction is not None and 0 < fraction < 1)

    @property
    def cuts(self) -> list[str]:
        """The keys by which training rows are moved to another split or left out, with their values."""
        given = {
            "data.validation_fraction": self.validation_fraction,
            "data.fold": self.fold,
            "data.split_by": self.split_by,
            "data.limit.train": self.limit.get("train"),
            "data.deduplicate": "true" if any(self.deduplicated_sources) else None,
            "data.missing": "drop" if self.missing == "drop" else None,
        }
        return [f"{key}={value}" for key, value in given.items() if value is not None]

    def columns_of(self, split: str) -> Columns:
        return self.train_columns if split == "train" else self.columns
