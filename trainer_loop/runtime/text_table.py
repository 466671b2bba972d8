"""Text tables for the console."""

from collections.abc import Collection, Sequence

from trainer_loop.errors import printable


def align(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Return the lines of a table with two spaces between columns.

    Columns whose indices are in `left` are aligned left, all others right.

    >>> align([("key", "a", "b"), ("lr", "0.5", "10")])
    ['key    a   b', 'lr   0.5  10']
    """
    table = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
