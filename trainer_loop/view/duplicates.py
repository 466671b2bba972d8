"""Rows that occur twice, within a split or in two splits: exact and near duplicates (MinHash)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

from trainer_loop.data.columns import Columns
from trainer_loop.data.duplicates import read_texts
from trainer_loop.data.split import Split
from trainer_loop.errors import UserError

_PERMUTATIONS = 128
_SHINGLE = 5  # characters

Find = Callable[[str, int], int | None]  # (text, row number) -> the first row before this number with the text


@dataclass(frozen=True)
class Duplicates:
    """Rows of `second` whose text is also in a row of `first`, or in an earlier row if both are one split."""

    first: str
    second: str
    count: int
    pairs: list[tuple[str, str]]  # the first few, by their places in the data
    near: float | None = None  # the threshold of the similarity; None: the texts are equal


def find_duplicates(
    splits: Mapping[str, Split], columns: Columns, *, near: float | None, shown: int = 5
) -> list[Duplicates]:
    """Find the duplicates of each pair of splits.

    Args:
        splits: The raw rows.
        columns: The columns whose texts are compared, ignoring case and repeated spaces.
        near: None: rows with equal texts. Otherwise rows whose sets of five characters overlap by this share or more
        shown: Number of pairs that are listed.

    Raises:
        UserError: `near` is given and the package datasketch is not installed.
    """
    texts = {name: list(read_texts(split, columns)) for name, split in splits.items()}
    finders = {name: _index_equal(rows) if near is None else _index_near(rows, near) for name, rows in texts.items()}
    duplicates = []
    for first, second in combinations_with_replacement(texts, 2):
        pairs = [
            (earlier, number)
            for number, text in enumerate(texts[second])
            if text and (earlier := finders[first](text, number if first == second else len(texts[first]))) is not None
        ]
        if pairs:
            origins, others = splits[first].origins, splits[second].origins
            places = [(origins.place(earlier), others.place(number)) for earlier, number in pairs[:shown]]
            duplicates.append(Duplicates(first, second, len(pairs), places, near))
    return duplicates


def _index_equal(texts: Sequence[str]) -> Find:
    first: dict[str, int] = {}
    for number, text in enumerate(texts):
        first.setdefault(text, number)

    def find(text: str, before: int) -> int | None:
        number = first.get(text, before)
        return number if number < before else None

    return find


def _index_near(texts: Sequence[str], threshold: float) -> Find:
    try:
        from datasketch import MinHashLSH
    except ImportError as error:
        raise UserError(f"near={threshold} needs the package datasketch: pip install datasketch") from error
    hashes = [_hash(text) for text in texts]
    lsh = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    for number, text in enumerate(texts):
        if text:
            lsh.insert(number, hashes[number])

    def find(text: str, before: int) -> int | None:
        query = _hash(text)
        candidates = sorted(number for number in lsh.query(query) if number < before)
        return next((number for number in candidates if hashes[number].jaccard(query) >= threshold), None)

    return find


def _hash(text: str) -> Any:
    from datasketch import MinHash

    hashed = MinHash(num_perm=_PERMUTATIONS)
    hashed.update_batch({text[place : place + _SHINGLE].encode() for place in range(max(len(text) - _SHINGLE, 0) + 1)})
    return hashed
