"""Image classification: one class for each image."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trainer_loop.data import images
from trainer_loop.data.columns import Column
from trainer_loop.errors import UserError
from trainer_loop.tasks.losses import cross_entropy
from trainer_loop.tasks.sequence_classification import SequenceClassification
from trainer_loop.tasks.task import Batch, Rows

_PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAA"  # prefix of the example images


class ImageClassification(SequenceClassification):
    """A row is an image and its class. A target is a row.

    An image is a path, a data URI (`data:image/png;base64,...`), or bytes, also in the form of `datasets`. Images are
    decoded for each batch, so a path is read in each pass over the rows.

    Args:
        mixup: Alpha of mixup (Zhang et al. 2018, arXiv 1710.09412), such as 0.2. In training each image is mixed with
            another training image, and the loss is a weighted sum for both labels. The weight is drawn once per step
            from Beta(alpha, alpha). null: no mixup.
        loss_function: `(logits [N, C], labels [N]) -> sum over rows, []`.
    """

    auto_model = "AutoModelForImageClassification"
    auto_processor = "AutoImageProcessor"
    columns: ClassVar[Mapping[str, Column]] = {"image": Column("image"), "label": Column("class", target=True)}
    pad: ClassVar[Mapping[str, int]] = {"labels": -100, "partner_labels": -100, "share": 0}
    peft_type = None  # peft has no name for this task
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

    def __init__(
        self, *, mixup: float | None = None, loss_function: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    ):
        if mixup is not None and not 0 < mixup < math.inf:
            raise UserError(f"task.args.mixup: {mixup}: it must be a number above 0, such as 0.2, or null")
        super().__init__(loss_function=loss_function)
        self.mixup = mixup
        self.mixes = mixup is not None

    def encode(self, rows: Rows, *, max_length: int) -> dict[str, list[Any]]:
        """Return the bytes of each image, or its path. An image that cannot be decoded completely is a fault."""
        sources = [images.read_source(value) for value in rows["image"]]
        return {
            "content": [content for content, _ in sources],
            "path": [path for _, path in sources],
            "fault": [images.explain_fault(*source, decodes=True) for source in sources],
        }

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Make `pixel_values` `[B, 3, H, W]`, and `labels` `[B]` if they are known.

        With mixup, also `partner_labels` `[B]` and `share` `[B]`, the weight of the row itself in the mixture.
        """
        batch = self._stack(rows)
        if self.mixup is None or "partner" not in rows[0]:
            return batch
        partners = self._stack([row["partner"] for row in rows])
        share = np.random.Generator(np.random.Philox(rows[0]["mixing"])).beta(self.mixup, self.mixup)
        batch["pixel_values"] = share * batch["pixel_values"] + (1 - share) * partners["pixel_values"]
        return batch | {"partner_labels": partners["labels"], "share": torch.full((len(rows),), share)}

    def _sum_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        loss = super()._sum_loss(logits, batch)
        if "partner_labels" not in batch:
            return loss
        share = batch["share"][0]  # the same for all rows of the step
        return share * loss + (1 - share) * self.loss_function(logits, batch["partner_labels"])

    def _stack(self, rows: list[dict[str, Any]]) -> Batch:
        """Decode and stack the images of rows, with their labels."""
        pictures = [images.decode(row["content"], row["path"]) for row in rows]
        batch: Batch = dict(self.processor(images=pictures, return_tensors="pt"))
        return batch | ({"labels": torch.tensor([row["label"] for row in rows])} if "label" in rows[0] else {})
