"""Metrics for tags, one for each word. Entities are spans of words, in the schemes IOB1, IOB2, IOBES and BILOU.

An entity is correct only if its words and its type are correct. Results equal those of the script conlleval of
CoNLL-2000, and of seqeval in its default mode.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, TypeAlias, TypedDict

import numpy as np

from trainer_loop.metrics.values import InParts, PartsOf, Tags


def _list_types(label_names: Sequence[str]) -> list[str]:
    """Return the types of entities in tag names.

    >>> _list_types(["O", "B-PER", "I-PER", "B-LOC"])
    ['PER', 'LOC']
    """
    return [name for name in dict.fromkeys(_split_tag(tag)[1] for tag in label_names) if name]


_OfTypes: TypeAlias = Annotated[InParts, PartsOf(_list_types, "per_type")]


class EntityScores(TypedDict):
    """Micro-averaged scores of all entities, and scores of each type. Support is the number of reference entities."""

    entity_f1: _OfTypes
    entity_precision: _OfTypes
    entity_recall: _OfTypes
    entity_support: Annotated[InParts, PartsOf(_list_types, "per_type", has_whole=False)]


def entity_f1(
    predictions: Tags, references: Tags, *, label_names: Sequence[str] | None = None, per_type: bool = False
) -> EntityScores:
    """Precision, recall and F1 over the entities of all rows.

    Args:
        label_names: Names of the tags, such as B-PER.
        per_type: Also report each type of entity, as entity_f1/PER.
    """
    if label_names is None:
        raise ValueError("it needs the names of the tags; set data.label_names, or label_names in its args")
    names = np.array(label_names, dtype=object)
    predicted, expected = (  # row, type, first word, and end (exclusive) of each entity
        {(number, *entity) for number, row in enumerate(rows) for entity in _find_entities(names[row])}
        for rows in _drop_unknown(predictions, references)
    )
    num_predicted, num_expected, num_correct = (
        Counter(kind for _, kind, _, _ in entities) for entities in (predicted, expected, predicted & expected)
    )
    f1, precision, recall, _ = _score(num_predicted.total(), num_expected.total(), num_correct.total())
    kinds = _list_types(label_names) if per_type else []
    scores_of_kinds = [_score(num_predicted[kind], num_expected[kind], num_correct[kind]) for kind in kinds]
    parts = [dict(zip(kinds, [scores[place] for scores in scores_of_kinds], strict=True)) for place in range(4)]
    return {
        "entity_f1": InParts(f1, parts[0]),
        "entity_precision": InParts(precision, parts[1]),
        "entity_recall": InParts(recall, parts[2]),
        "entity_support": InParts(None, parts[3]),
    }


def _score(num_predicted: int, num_expected: int, num_correct: int) -> tuple[float, float, float, int]:
    """Return F1, precision, recall and support. Undefined scores are 0."""
    precision, recall = num_correct / max(num_predicted, 1), num_correct / max(num_expected, 1)
    return 2 * precision * recall / (precision + recall) if num_correct else 0.0, precision, recall, num_expected


def tag_accuracy(predictions: Tags, references: Tags) -> float:
    """Share of words whose tag is correct."""
    predicted, expected = _drop_unknown(predictions, references)
    num_correct = sum(int((row == other).sum()) for row, other in zip(predicted, expected, strict=True))
    return num_correct / max(sum(map(len, expected)), 1)


def _drop_unknown(predictions: Tags, references: Tags) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Remove words with an unknown reference tag, which is a negative number, from both."""
    masks = [row >= 0 for row in references]
    predicted, expected = (
        [row[mask] for row, mask in zip(rows, masks, strict=True)] for rows in (predictions, references)
    )
    return predicted, expected


def _find_entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the type, first word, and end (exclusive) of each entity.

    >>> _find_entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5)]
    """
    entities: list[tuple[str, int, int]] = []
    start, kind, is_closed = 0, "", True  # the entity of the previous word
    for position, tag in enumerate([*tags, "O"]):
        prefix, name = _split_tag(tag)
        continues = bool(name) and name == kind and not is_closed and prefix not in ("B", "S", "U")
        if not continues:
            if kind:
                entities.append((kind, start, position))
            start, kind = position, name
        is_closed = prefix in ("E", "L", "S", "U")
    return entities


def _split_tag(tag: str) -> tuple[str, str]:
    """Split a tag into prefix and type. A tag without a prefix is a type."""
    prefix, dash, name = tag.partition("-")
    if dash and prefix in ("B", "I", "E", "L", "S", "U"):
        return prefix, name
    return "", "" if tag == "O" else tag
