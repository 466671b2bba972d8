"""Tags of words that mark entities, such as B-PER and I-PER."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer_loop.data.labels import LabelNames
from trainer_loop.data.split import Split
from trainer_loop.data.wording import plural

_PREFIXES = {"B", "I", "E", "S", "L", "U"}  # of BIO, BIOES and BILOU
_OPEN = {"B", "I"}  # an entity may go on behind them
_GOES_ON = {"I", "E", "L"}


def warn_of_stray_tags(split: Split, column: str, names: LabelNames, *, is_head: bool = False) -> list[str]:
    """A line about tags that go on with an entity which has not begun, if the tags have the prefix B; or nothing.

    split: rows whose tags were found good. column: a list of tags for each row. is_head: there are more rows.
    """
    parts = [name.partition("-") for name in names.names]
    prefixes = {prefix for prefix, _, _ in parts} - {"O"}
    if "B" not in prefixes or not prefixes <= _PREFIXES:
        return []
    table: pa.Table = split.rows.select_columns([column]).with_format("arrow")[:]
    lists = table[column].combine_chunks()
    values = lists.flatten()
    places = pc.index_in(values, pa.array(list(names.ids), values.type)).to_numpy(zero_copy_only=False)
    ids = np.array(list(names.ids.values()))[places]
    rows = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    goes_on = np.array([prefix in _GOES_ON for prefix, _, _ in parts])
    is_open = np.array([prefix in _OPEN for prefix, _, _ in parts])
    kinds = np.unique([kind for _, _, kind in parts], return_inverse=True)[1]
    is_stray = goes_on[ids]
    is_stray[1:] &= ~((rows[1:] == rows[:-1]) & is_open[ids[:-1]] & (kinds[ids[1:]] == kinds[ids[:-1]]))
    if not is_stray.any():
        return []
    first = int(is_stray.argmax())
    count, tag, place = int(is_stray.sum()), names.names[ids[first]], split.origins.place(rows[first])
    of = f" of the first {len(lists):,}" if is_head else ""
    return [
        f"data.{split.name}: {plural(count, 'tag')} in {plural(len(np.unique(rows[is_stray])), 'row')}{of} "
        f"{'goes' if count == 1 else 'go'} on with an entity that did not begin, the first is {tag} in {place}; an "
        "entity begins with B-, and metrics let one begin there too"
    ]
