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

    `train` is the spec of the training split:
      - the name of a split of the hub data set `name`, or a slice of one (`train[:1000]`);
      - a file, a glob, a folder that `save_to_disk` wrote, or a list of them. Such a spec has a known extension, a
        slash, `*` or `?`, or the path exists. Or a folder of images in folders, see `read_image_folder`;
      - a query of a database, `{"sql": ..., "connection": ...}`, see `read_query`;
      - else, if `name` is None, the dotted path of a function that returns a datasets.Dataset or an iterable of dicts.
        It may have no required parameter except `seed`;
      - in-memory rows, see `as_dataset`.
    `validation` and `test` are such a spec, or a mapping of set names to specs; a set is a split such as
    `validation.matched`.

    Duplicates are dropped first. Then `validation_fraction` of the training rows, or the part `fold`, become the
    validation split. Then `limit` samples each split.
    """

    train: Any
    columns: Columns  # bound to the task, see `bind_columns`
    seed: int
    validation: Any = None
    test: Any = None
    name: str | None = None
    config: str | None = None
    validation_fraction: float | None = None
    fold: str | None = None
    streaming: bool = False
    shuffle_rows: int = 1
    files: TextFormat = DEFAULT_FORMAT  # of text files
    missing: str = "refuse"  # see `settle_missing`
    limit: Mapping[str, int | None] = field(default_factory=dict)
    label_names: Any = None
    max_length: int = 512
    num_workers: int | str = 0  # changes how rows are loaded, not which
    cache_dir: str | None = None
    mixture: Sequence[Mapping[str, Any]] = ()  # sources; each may have its own filter, map, columns and deduplicate
    weight: str | None = None
    sampling: str = "shuffle"  # changes the order of the rows, not which are read
    split_by: str | None = None
    filter: str | None = None  # dotted path of a function of a row with all columns, for all splits; see `RowFunctions`
    map: str | None = None  # likewise
    deduplicate: bool = False  # see `drop_duplicates`

    @property
    def train_columns(self) -> Columns:
        """The columns of the training rows that are read."""
        return self.columns.beside(weight=self.weight, group=self.split_by)

    @property
    def deduplicated_sources(self) -> list[bool]:
        """Whether duplicates are dropped: one value per source of the mixture, or one value without a mixture."""
        return [entry.get("deduplicate", self.deduplicate) for entry in self.mixture] or [self.deduplicate]

    @property
    def cuts_validation(self) -> bool:
        """Whether a part of the training rows becomes the validation split."""
        fraction = self.validation_fraction
        return self.fold is not None or (fraction is not None and 0 < fraction < 1)

    @property
    def cuts(self) -> list[str]:
        """The settings that remove rows from the training split, as `key=value`."""
        values = {
            "data.validation_fraction": self.validation_fraction,
            "data.fold": self.fold,
            "data.split_by": self.split_by,
            "data.limit.train": self.limit.get("train"),
            "data.deduplicate": "true" if any(self.deduplicated_sources) else None,
            "data.missing": "drop" if self.missing == "drop" else None,
        }
        return [f"{key}={value}" for key, value in values.items() if value is not None]

    def columns_of(self, split: str) -> Columns:
        return self.train_columns if split == "train" else self.columns
