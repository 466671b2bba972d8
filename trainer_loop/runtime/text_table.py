"""Tables of texts on a console."""

from collections.abc import Collection, Sequence

from trainer_loop.errors import printable


def align(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """The lines of a table, two spaces between its columns.

    Columns whose numbers are in `left` begin at the left; those of numbers end at the right.

    >>> align([("key", "a", "b"), ("lr", "0.5", "10")])
    ['key    a   b', 'lr   0.5  10']
    """
    table = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
