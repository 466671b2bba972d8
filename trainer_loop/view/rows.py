"""Rows as the model gets them: token by token, with special tokens, targets, padding, and cut tokens."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from trainer_loop.data.loader import add_draws
from trainer_loop.data.mixture import Mixture
from trainer_loop.data.split import TokenisedSplit
from trainer_loop.report.page import Card
from trainer_loop.tasks.language_model import LanguageModel
from trainer_loop.tasks.task import Batch, Task

_UNLIMITED = 1_000_000  # tokens: the maximum length for a row that is encoded whole
_SHOWN_OF_CUT = 50  # tokens
_SHOWN_AS_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "prompt", "draw", "word")
_SHOWN_TOGETHER = 4  # rows that are padded in one batch


@dataclass(frozen=True)
class Token:
    """A token of the view."""

    text: str
    kind: Literal["text", "special", "padding", "cut"] = "text"
    target: str | None = None  # what the model learns here; empty: the token itself; None: nothing


@dataclass(frozen=True)
class DrawnSplit:
    """Encoded rows of a split, and how often they are drawn."""

    split: TokenisedSplit
    sources: Sequence[str] = ()  # names of the sources of a mixture
    mixture: Mixture | None = None  # how an epoch is drawn; None: each row once, or rows of an evaluation
    weights: np.ndarray | None = None  # [N] factors of the losses; None: 1 for each

    def describe(self, row: int) -> dict[str, str]:
        """Return the source of a row, the weight of its loss, and how often it is drawn, by name."""
        facts = {}
        if self.split.origins.sources:
            facts["source"] = self.sources[self.split.origins.source_of_rows[row]]
        if self.weights is not None:
            facts["weight of its loss"] = f"{self.weights[row]:g}"
        if self.mixture is not None:
            facts["drawn"] = f"{self.mixture.count_draws(self.mixture.sources[row]):.2f} times an epoch"
        return facts


def choose_rows(count: int, number: int) -> list[int]:
    """Choose `number` of `count` rows, spread evenly.

    >>> choose_rows(100, 3), choose_rows(2, 3)
    ([0, 50, 99], [0, 1])
    """
    return np.unique(np.linspace(0, count - 1, min(number, count)).round().astype(int)).tolist()


def view_rows(drawn: DrawnSplit, task: Task, numbers: Sequence[int]) -> list[Card]:
    """Make a card for each of some encoded rows. A few rows together are padded, as one batch.

    A row of `multiple_choice` has several sequences of tokens; a row without tokens has none.

    Args:
        drawn: The split.
        task: A task that is bound to its processor.
        numbers: The numbers of the rows, from 0.
    """
    split, padding = drawn.split, copy.copy(task)
    padding.packs = False
    cards: list[Card] = []
    for start in range(0, len(numbers), _SHOWN_TOGETHER):
        chosen = list(numbers[start : start + _SHOWN_TOGETHER])
        rows = [dict(split.rows[number]) for number in chosen]
        rows = add_draws(rows, chosen) if task.draws else rows
        batch = padding.collate(rows)
        sequences = _view_sequences(padding, batch) if task.has_tokens else []
        each = len(sequences) // len(rows)
        for place, number in enumerate(chosen):
            tokens = sequences[place * each : (place + 1) * each]
            cut = _find_cut(split, task, number, rows[place])
            if tokens and cut:
                tokens = [*tokens[:-1], tokens[-1] + cut]
            facts = _list_facts(rows[place], task) | drawn.describe(number)
            cards.append(Card(split.origins.place(number), {}, facts, tokens))
    return cards


def _view_sequences(task: Task, batch: Batch) -> list[list[Token]]:
    ids = batch["input_ids"].tolist()
    mask = batch["attention_mask"].tolist() if "attention_mask" in batch else [[1] * len(row) for row in ids]
    targets = _find_targets(task, batch)
    special = set(task.tokenizer.all_special_ids)
    return [
        [
            Token(
                _spell(task.tokenizer, token),
                "padding" if not is_token else "special" if token in special else "text",
                target if is_token else None,
            )
            for token, is_token, target in zip(row, there, learned, strict=True)
        ]
        for row, there, learned in zip(ids, mask, targets, strict=True)
    ]


def _find_targets(task: Task, batch: Batch) -> list[list[str | None]]:
    """Return the target of each token, `[B][T]`."""
    ids, labels = batch["input_ids"], batch.get("labels")
    if isinstance(task, LanguageModel) and labels is None:
        _, following, _ = task.find_targets(batch)
        has_target = (following.view(ids.shape) != -100).tolist()
        return [[None, *("" if is_target else None for is_target in row[:-1])] for row in has_target]
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != ids.shape:
        return [[None] * ids.shape[1]] * len(ids)
    return [
        [_name_target(task, label, token) for label, token in zip(row_labels, row, strict=True)]
        for row_labels, row in zip(labels.tolist(), ids.tolist(), strict=True)
    ]


def _name_target(task: Task, label: int, token: int) -> str | None:
    if label == -100:
        return None
    if task.label_names is not None:
        return task.label_names[label]
    return "" if label == token else _spell(task.tokenizer, label)


def _find_cut(split: TokenisedSplit, task: Task, number: int, row: Mapping[str, Any]) -> list[Token]:
    """Return the first tokens that were cut off, and the number of the others. Tasks that join texts cut no tokens."""
    if split.raw is None or not task.has_tokens or "input_ids" not in row or type(row["input_ids"][0]) is not int:
        return []
    raw = split.raw.read(int(split.raw.sources[number]))
    inputs = {name: value for name, value in raw.items() if not task.columns[name].kind.startswith("class")}
    whole = task.encode({name: [value] for name, value in inputs.items()}, max_length=_UNLIMITED)
    if "source" in whole or not whole.get("truncated") or len(whole["input_ids"][0]) <= len(row["input_ids"]):
        return []
    ids, kept = whole["input_ids"][0], row["input_ids"]
    # The tokens between the equal start and the equal end were cut.
    start = next((place for place, pair in enumerate(zip(ids, kept, strict=False)) if pair[0] != pair[1]), len(kept))
    cut = ids[start : len(ids) - (len(kept) - start)]
    tokens = [Token(_spell(task.tokenizer, token), "cut") for token in cut[:_SHOWN_OF_CUT]]
    more = len(cut) - len(tokens)
    return [*tokens, Token(f"... and {more:,} more tokens", "cut")] if more else tokens


def _list_facts(row: Mapping[str, Any], task: Task) -> dict[str, str]:
    """Return the columns besides the tokens; target texts are decoded."""
    facts = {}
    for name, value in row.items():
        if name in _SHOWN_AS_TOKENS or isinstance(value, bytes):
            continue
        if name == "label" and task.label_names is not None and isinstance(value, (int, list)):
            facts[name] = _name_label(value, task.label_names)
        elif name == "labels" and task.has_tokens and task.label_names is None and _are_tokens(value):
            if len(value) != len(row["input_ids"]):  # otherwise they are shown at the tokens
                facts["target"] = task.tokenizer.decode([token for token in value if token != -100])
        elif not (isinstance(value, list) and len(value) == len(row.get("input_ids", ()))):
            facts[name] = str(value) if len(str(value)) <= 200 else f"{str(value)[:200]}..."
    return facts


def _name_label(value: Any, label_names: Sequence[str]) -> str:
    """Format one class, any number of classes, or several numbers, by the names of the classes.

    >>> names = ["joy", "anger"]
    >>> _name_label(1, names), _name_label([0, 1], names), _name_label([], names), _name_label([0.5, 2.0], names)
    ('anger', 'joy, anger', 'none', 'joy 0.5, anger 2.0')
    """
    if not isinstance(value, list):
        return label_names[value]
    if any(isinstance(number, float) for number in value):
        return ", ".join(f"{name} {number}" for name, number in zip(label_names, value, strict=True))
    return ", ".join(label_names[number] for number in value) or "none"


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def _spell(tokenizer: Any, token: int) -> str:
    """Return the text of a token; a token that is part of a character as the tokenizer writes it."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    raw = str(tokenizer.convert_ids_to_tokens(token))
    if raw.startswith("##"):
        return raw
    return raw if not text or "\ufffd" in text else text
