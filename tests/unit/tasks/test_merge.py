"""`merge_outputs`: the encoded rows of each raw row, and no others, are merged."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer_loop import Task
from trainer_loop.tasks.merge import merge_outputs
from trainer_loop.tasks.task import Batch


class JoinTexts(Task):
    """Says which rows were merged."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        raise NotImplementedError

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        raise NotImplementedError

    def merge(self, parts: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": row["name"] + "".join(str(part["number"]) for part in parts), "largest": max(parts[0]["pair"])}


@given(st.lists(st.integers(min_value=1, max_value=4), min_size=1))
def test_each_raw_row_gets_the_outputs_of_its_own_encoded_rows_in_order(counts: list[int]):
    sources = [source for source, count in enumerate(counts) for _ in range(count)]
    numbers = np.arange(len(sources))
    outputs = {"number": numbers, "pair": np.stack([numbers, numbers + 1], axis=1)}
    merged, first = merge_outputs(JoinTexts(), outputs, sources=sources, read=lambda number: {"name": f"{number}:"})
    of_row = [[str(place) for place, source in enumerate(sources) if source == row] for row in range(len(counts))]
    assert merged["text"].tolist() == [f"{row}:{''.join(own)}" for row, own in enumerate(of_row)]
    assert first == [int(own[0]) for own in of_row]
    assert merged["largest"].tolist() == [number + 1 for number in first]


def test_numbers_become_an_array_of_numbers_and_texts_one_of_objects():
    outputs = {"number": np.arange(2), "pair": np.zeros((2, 2))}
    merged, _ = merge_outputs(JoinTexts(), outputs, sources=[0, 1], read=lambda number: {"name": ""})
    assert merged["largest"].dtype == np.float64
    assert merged["text"].dtype == object


def test_vectors_of_one_length_become_one_array():
    class KeepPair(JoinTexts):
        def merge(self, parts: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> dict[str, Any]:
            return {"pair": parts[0]["pair"]}

    merged, _ = merge_outputs(KeepPair(), {"pair": np.eye(2)}, sources=[0, 1], read=lambda number: {})
    assert merged["pair"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
