"""Text files (.txt): one row for each line that is not blank, in a column `text`."""

from collections.abc import Iterator

from trainer_loop.data.shards import Batch, Item, Mark, Shard, gather
from trainer_loop.data.text_format import Lines, TextFormat


def open_text_lines(path: str, *, text_format: TextFormat) -> Shard:
    """Open a .txt file."""

    def read(mark: Mark | None) -> Iterator[Batch]:
        lines = Lines(path, text_format.encoding, mark)
        return gather(
            _read_lines(lines), lambda texts: [{"text": text} for text in texts], nothing="", names=("line", "offset")
        )

    return Shard(path, "line", read, names=lambda: ["text"], has_fields=True, no_rows="is empty")


def _read_lines(lines: Lines) -> Iterator[Item[str]]:
    for line in lines:
        if line.strip():
            text = line.removesuffix("\n").removesuffix("\r")
            yield text, (lines.number, lines.offset)
