"""Which columns of an Arrow schema can be held as rows of datasets."""

from collections.abc import Collection

import datasets
import pyarrow as pa

from trainer_loop.errors import UserError, in_one_line


def find_features(schema: pa.Schema, *, path: str, wanted: Collection[str]) -> datasets.Features:
    """The types of the columns that can be held; others are left out.

    Raises UserError where a wanted column is one of these, or where they are all that the file at `path` has.
    """
    features = datasets.Features()
    problems: dict[str, str] = {}
    for name in dict.fromkeys(schema.names):
        try:
            features[name] = _find_feature(schema, name)
        except (ValueError, TypeError, KeyError) as error:
            problems[name] = f"{path}: column {name!r} cannot be read: {in_one_line(error)}"
    told = [problem for name, problem in problems.items() if name in wanted or not features]
    if told:
        raise UserError(told)
    return features


def _find_feature(schema: pa.Schema, name: str) -> object:
    places = schema.get_all_field_indices(name)
    if len(places) > 1:
        raise ValueError(f"there are {len(places)} columns of this name")
    alone = pa.schema([schema.field(places[0])], metadata=schema.metadata)
    return datasets.Features.from_arrow_schema(alone)[name]
