"""The columns that tests of data read."""

from trainer_loop import Column
from trainer_loop.data.columns import Columns


def make_columns(text: str = "text", text_pair: str | None = None, label: str | None = "label") -> Columns:
    """Of a task that classifies texts; without a label those of a task on running texts, which may be blank."""
    declared = {
        "text": Column("text", blank=label is None),
        "text_pair": Column("text", optional=True, blank=label is None),
        "label": Column("class", target=True),
    }
    names = {"text": text, "text_pair": text_pair, "label": label}
    return Columns(declared, {own: name for own, name in names.items() if name is not None})
