"""One class for each image."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from trainer_loop.data import images
from trainer_loop.data.columns import Column
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.tasks.task import Batch, Rows

_PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAA"  # how the images of the example begin


class ImageClassification(SequenceClassification):
    """A row is an image and its class; a target is a row.

    An image is a path, a data URI (`data:image/png;base64,...`), or bytes, also as `datasets` has them. Images are
    decoded batch by batch: a path is read at each pass over the rows.

    loss_function: `(logits [N, C], labels [N]) -> sum over rows, []`.
    """

    auto_model = "AutoModelForImageClassification"
    auto_processor = "AutoImageProcessor"
    columns: ClassVar[Mapping[str, Column]] = {"image": Column("image"), "label": Column("class", target=True)}
    peft_type = None  # peft knows no such task
    pipeline_tag = "image-classification"
    can_pack = False
    padding_sides = ("right",)
    reads_end = False
    is_tried = False
    example: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"image": f"{_PNG}QAAAAECAIAAAAmkwkpAAAAEElEQVR42mP8z4AATAxEcQAz0QEH0oWRNwAAAABJRU5ErkJggg==", "label": "red"},
        {
            "image": f"{_PNG}YAAAAECAIAAAAiZtkUAAAAFElEQVR42mNkYPjPgAqYGDAAcUIASjMBBwE2HaAAAAAASUVORK5CYII=",
            "label": "blue",
        },
        {
            "image": f"{_PNG}UAAAAFCAIAAAACDbGyAAAAF0lEQVR42mP8zwAD//8zMDAwMaACUvkA2QgDB3vNa6oAAAAASUVORK5CYII=",
            "label": "red",
        },
        {
            "image": f"{_PNG}QAAAAFCAIAAADtz9qMAAAAEklEQVR42mNkYPjPAANMDKQDAD6sAQMWVsHjAAAAAElFTkSuQmCC",
            "label": "blue",
        },
    )

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """The bytes of each image, or its path."""
        sources = [images.read_source(value) for value in rows["image"]]
        return {"content": [content for content, _ in sources], "path": [path for _, path in sources]}

    def find_faults(self, encoded: Mapping[str, Sequence[Any]], *, are_pairs: bool) -> dict[int, str]:
        """Images that cannot be decoded to the end."""
        sources = enumerate(zip(encoded["content"], encoded["path"], strict=True))
        faults = {row: images.explain_fault(*source, decodes=True) for row, source in sources}
        return {row: fault for row, fault in faults.items() if fault is not None}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """`pixel_values` `[B, 3, H, W]`, and `labels` `[B]` if they are known."""
        decoded = [images.decode(row["content"], row["path"]) for row in rows]
        batch: Batch = dict(self.processor(images=decoded, return_tensors="pt"))
        return batch | ({"labels": torch.tensor([row["label"] for row in rows])} if "label" in rows[0] else {})
