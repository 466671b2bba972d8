"""Rows that occur twice, within a split and in two splits: exactly, and nearly by MinHash."""

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

Find = Callable[[str, int], int | None]  # (text, number of a row) -> the first row before that one that has this text


@dataclass(frozen=True)
class Duplicates:
    """Rows of `second` whose texts a row of `first` has too, or an earlier row if both are one split.

    pairs: the first few, by their origins. near: the share of a text that is alike at least; None: all of it.
    """

    first: str
    second: str
    count: int
    pairs: list[tuple[str, str]]
    near: float | None = None


def find_duplicates(
    splits: Mapping[str, Split], columns: Columns, *, near: float | None, shown: int = 5
) -> list[Duplicates]:
    """Of each pair of splits, those that have any.

    Args:
        splits: Raw rows.
        columns: The columns that are read; their texts are compared, without case and runs of spaces.
        near: None: rows with the same texts. Else rows whose sets of five characters overlap by this share or more
            (Jaccard similarity, estimated by MinHash).
        shown: Pairs that are listed.

    Raises:
        UserError: `near` needs the package datasketch.
    """
    texts = {name: list(read_texts(split, columns)) for name, split in splits.items()}
    finders = {name: _index_equal(own) if near is None else _index_near(own, near) for name, own in texts.items()}
    found = []
    for first, second in combinations_with_replacement(texts, 2):
        pairs = [
            (one, number)
            for number, text in enumerate(texts[second])
            if text and (one := finders[first](text, number if first == second else len(texts[first]))) is not None
        ]
        if pairs:
            origins, others = splits[first].origins, splits[second].origins
            places = [(origins.place(one), others.place(number)) for one, number in pairs[:shown]]
            found.append(Duplicates(first, second, len(pairs), places, near))
    return found


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
        asked = _hash(text)
        likely = sorted(number for number in lsh.query(asked) if number < before)
        return next((number for number in likely if hashes[number].jaccard(asked) >= threshold), None)

    return find


def _hash(text: str) -> Any:
    from datasketch import MinHash

    hashed = MinHash(num_perm=_PERMUTATIONS)
    hashed.update_batch({text[place : place + _SHINGLE].encode() for place in range(max(len(text) - _SHINGLE, 0) + 1)})
    return hashed
