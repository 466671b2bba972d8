"""Outputs of rows that come in any order, and in batches of any size."""

import numpy as np
import torch

from trainer_loop.parallel.row_outputs import RowOutputs


def collect() -> RowOutputs:
    outputs = RowOutputs()
    outputs.add([2, 0], {"score": torch.tensor([2.0, 0.0]), "tags": [torch.tensor([7, 8]), torch.tensor([5])]})
    outputs.add([1], {"score": torch.tensor([1.0]), "tags": [torch.tensor([], dtype=torch.long)]})
    return outputs


def test_rows_are_in_their_order_and_those_of_unlike_lengths_are_arrays_of_arrays():
    for joined in (collect().join(), collect().gather(3)):
        assert joined["score"].tolist() == [0.0, 1.0, 2.0]
        assert [row.tolist() for row in joined["tags"]] == [[5], [], [7, 8]]
        assert joined["tags"].dtype == object


def test_bfloat16_becomes_float32():
    outputs = RowOutputs()
    outputs.add([0], {"score": torch.tensor([0.5], dtype=torch.bfloat16)})
    assert outputs.join()["score"].dtype == np.float32


def test_what_a_task_does_not_give_is_left_out():
    outputs = RowOutputs()
    outputs.add([0], {"predictions": torch.tensor([1]), "references": None})
    assert list(outputs.join()) == ["predictions"]
    assert RowOutputs().join() == {}
