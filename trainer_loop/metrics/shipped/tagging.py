"""Metrics on tags, one for each word: entities as spans of words, in the schemes IOB1, IOB2, IOBES and BILOU.

An entity counts only if its words and its type are right; results are those of the script conlleval of CoNLL-2000, and
of seqeval in its default mode.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, TypeAlias, TypedDict

import numpy as np

from trainer_loop.metrics.values import InParts, PartsOf, Tags


def _list_types(label_names: Sequence[str]) -> list[str]:
    """The types of entities that tags are of.

    >>> _list_types(["O", "B-PER", "I-PER", "B-LOC"])
    ['PER', 'LOC']
    """
    return [name for name in dict.fromkeys(_split_tag(tag)[1] for tag in label_names) if name]


_OfTypes: TypeAlias = Annotated[InParts, PartsOf(_list_types, "per_type")]


class EntityScores(TypedDict):
    """Scores of the entities of all types, micro-averaged, and of each type; support is how many there are."""

    entity_f1: _OfTypes
    entity_precision: _OfTypes
    entity_recall: _OfTypes
    entity_support: Annotated[InParts, PartsOf(_list_types, "per_type", has_whole=False)]


def entity_f1(
    predictions: Tags, references: Tags, *, label_names: Sequence[str] | None = None, per_type: bool = False
) -> EntityScores:
    """Precision, recall and their harmonic mean over the entities of all rows.

    label_names: the tags, such as B-PER. per_type: report each type of entity too, as entity_f1/PER.
    """
    if label_names is None:
        raise ValueError("it needs the names of the tags; set data.label_names, or label_names in its args")
    names = np.array(label_names, dtype=object)
    predicted, there = (  # the row, the type, the first word and the word behind the last of each entity
        {(number, *entity) for number, row in enumerate(rows) for entity in _find_entities(names[row])}
        for rows in _drop_unknown(predictions, references)
    )
    num_predicted, num_there, num_right = (
        Counter(kind for _, kind, _, _ in entities) for entities in (predicted, there, predicted & there)
    )
    f1, precision, recall, _ = _score(num_predicted.total(), num_there.total(), num_right.total())
    kinds = _list_types(label_names) if per_type else []
    of_kinds = [_score(num_predicted[kind], num_there[kind], num_right[kind]) for kind in kinds]
    parts = [dict(zip(kinds, [scores[place] for scores in of_kinds], strict=True)) for place in range(4)]
    return {
        "entity_f1": InParts(f1, parts[0]),
        "entity_precision": InParts(precision, parts[1]),
        "entity_recall": InParts(recall, parts[2]),
        "entity_support": InParts(None, parts[3]),
    }


def _score(predicted: int, there: int, right: int) -> tuple[float, float, float, int]:
    """F1, precision, recall and support, of so many entities; 0 where a score is not defined."""
    precision, recall = right / max(predicted, 1), right / max(there, 1)
    return 2 * precision * recall / (precision + recall) if right else 0.0, precision, recall, there


def tag_accuracy(predictions: Tags, references: Tags) -> float:
    """The share of words whose tag is right."""
    predicted, there = _drop_unknown(predictions, references)
    right = sum(int((row == other).sum()) for row, other in zip(predicted, there, strict=True))
    return right / max(sum(map(len, there)), 1)


def _drop_unknown(predictions: Tags, references: Tags) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Both without the words whose tag is not known, which have a negative number."""
    known = [row >= 0 for row in references]
    predicted, there = (
        [row[kept] for row, kept in zip(rows, known, strict=True)] for rows in (predictions, references)
    )
    return predicted, there


def _find_entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Type, first word and word behind the last of each entity.

    >>> _find_entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5)]
    """
    found: list[tuple[str, int, int]] = []
    start, kind, is_closed = 0, "", True  # of the entity that the last word belongs to
    for position, tag in enumerate([*tags, "O"]):
        prefix, name = _split_tag(tag)
        goes_on = bool(name) and name == kind and not is_closed and prefix not in ("B", "S", "U")
        if not goes_on:
            if kind:
                found.append((kind, start, position))
            start, kind = position, name
        is_closed = prefix in ("E", "L", "S", "U")
    return found


def _split_tag(tag: str) -> tuple[str, str]:
    """The prefix and the type of an entity; a tag without a prefix is a type."""
    prefix, dash, name = tag.partition("-")
    if dash and prefix in ("B", "I", "E", "L", "S", "U"):
        return prefix, name
    return "", "" if tag == "O" else tag
