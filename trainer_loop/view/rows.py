"""Rows as the model sees them: token by token, with special tokens, targets, padding, and what was cut."""

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

_WHOLE = 1_000_000  # tokens, of a row that is encoded without a limit
_SHOWN_OF_CUT = 50  # tokens
_SHOWN_AS_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "prompt", "draw", "word")
_SHOWN_TOGETHER = 4  # rows that are padded as one batch


@dataclass(frozen=True)
class Token:
    """A token as it is shown.

    target: what the model learns here: the empty text for the token itself, None for nothing.
    """

    text: str
    kind: Literal["text", "special", "padding", "cut"] = "text"
    target: str | None = None


@dataclass(frozen=True)
class DrawnSplit:
    """Encoded rows, and how they are drawn.

    sources: the names of the sources of a mixture; empty without one. mixture: how an epoch is drawn; None: each row
    once, or rows that are not trained. weights: `[N]` factors of the losses; None: 1 for each.
    """

    split: TokenisedSplit
    sources: Sequence[str] = ()
    mixture: Mixture | None = None
    weights: np.ndarray | None = None

    def describe(self, row: int) -> dict[str, str]:
        """The source of a row, the weight of its loss, and how often it comes, by name, for a person."""
        facts = {}
        if self.split.origins.sources:
            facts["source"] = self.sources[self.split.origins.source_of_rows[row]]
        if self.weights is not None:
            facts["weight of its loss"] = f"{self.weights[row]:g}"
        if self.mixture is not None:
            facts["drawn"] = f"{self.mixture.count_draws(self.mixture.sources[row]):.2f} times an epoch"
        return facts


def choose_rows(count: int, number: int) -> list[int]:
    """The numbers of so many of `count` rows, spread evenly.

    >>> choose_rows(100, 3), choose_rows(2, 3)
    ([0, 50, 99], [0, 1])
    """
    return np.unique(np.linspace(0, count - 1, min(number, count)).round().astype(int)).tolist()


def view_rows(drawn: DrawnSplit, task: Task, numbers: Sequence[int]) -> list[Card]:
    """The encoded rows of these numbers, padded a few together, each with what else the model gets.

    A row of `multiple_choice` has several sequences of tokens, and a row without tokens has none.

    Args:
        drawn: The split.
        task: A task that is bound to its processor.
        numbers: Of the rows, from 0.
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
            own = sequences[place * each : (place + 1) * each]
            cut = _find_cut(split, task, number, rows[place])
            if own and cut:
                own = [*own[:-1], own[-1] + cut]
            facts = _list_facts(rows[place], task) | drawn.describe(number)
            cards.append(Card(split.origins.place(number), {}, facts, own))
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
                "padding" if not is_there else "special" if token in special else "text",
                target if is_there else None,
            )
            for token, is_there, target in zip(row, there, learned, strict=True)
        ]
        for row, there, learned in zip(ids, mask, targets, strict=True)
    ]


def _find_targets(task: Task, batch: Batch) -> list[list[str | None]]:
    """What is learned at each token, `[B][T]`."""
    ids, labels = batch["input_ids"], batch.get("labels")
    if isinstance(task, LanguageModel) and labels is None:
        _, following, _ = task.find_targets(batch)
        before = (following.view(ids.shape) != -100).tolist()
        return [[None, *("" if is_one else None for is_one in row[:-1])] for row in before]
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != ids.shape:
        return [[None] * ids.shape[1]] * len(ids)
    return [
        [_name_target(task, label, token) for label, token in zip(own, row, strict=True)]
        for own, row in zip(labels.tolist(), ids.tolist(), strict=True)
    ]


def _name_target(task: Task, label: int, token: int) -> str | None:
    if label == -100:
        return None
    if task.label_names is not None:
        return task.label_names[label]
    return "" if label == token else _spell(task.tokenizer, label)


def _find_cut(split: TokenisedSplit, task: Task, number: int, row: Mapping[str, Any]) -> list[Token]:
    """The first tokens that were cut off, and how many more there are. A task that joins texts cuts none off."""
    if split.raw is None or not task.has_tokens or "input_ids" not in row or type(row["input_ids"][0]) is not int:
        return []
    raw = split.raw.read(int(split.raw.sources[number]))
    own = {name: value for name, value in raw.items() if not task.columns[name].kind.startswith("class")}
    whole = task.encode({name: [value] for name, value in own.items()}, max_length=_WHOLE)
    if "source" in whole or not whole.get("truncated") or len(whole["input_ids"][0]) <= len(row["input_ids"]):
        return []
    ids, kept = whole["input_ids"][0], row["input_ids"]
    alike = next((place for place, pair in enumerate(zip(ids, kept, strict=False)) if pair[0] != pair[1]), len(kept))
    rest = ids[alike : len(ids) - (len(kept) - alike)]
    tokens = [Token(_spell(task.tokenizer, token), "cut") for token in rest[:_SHOWN_OF_CUT]]
    more = len(rest) - len(tokens)
    return [*tokens, Token(f"... and {more:,} more tokens", "cut")] if more else tokens


def _list_facts(row: Mapping[str, Any], task: Task) -> dict[str, str]:
    """The columns beside the tokens; texts that are written are decoded."""
    facts = {}
    for name, value in row.items():
        if name in _SHOWN_AS_TOKENS or isinstance(value, bytes):
            continue
        if name == "label" and task.label_names is not None and isinstance(value, (int, list)):
            facts[name] = _name_label(value, task.label_names)
        elif name == "labels" and task.has_tokens and task.label_names is None and _are_tokens(value):
            if len(value) != len(row["input_ids"]):  # else they are shown beside the tokens
                facts["target"] = task.tokenizer.decode([token for token in value if token != -100])
        elif not (isinstance(value, list) and len(value) == len(row.get("input_ids", ()))):
            facts[name] = str(value) if len(str(value)) <= 200 else f"{str(value)[:200]}..."
    return facts


def _name_label(value: Any, label_names: Sequence[str]) -> str:
    """One class, any number of classes, or several numbers, by their names.

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
    """A token as a person reads it; one that is part of a character as the tokenizer writes it."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    raw = str(tokenizer.convert_ids_to_tokens(token))
    if raw.startswith("##"):
        return raw
    return raw if not text or "\ufffd" in text else text
