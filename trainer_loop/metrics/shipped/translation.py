"""Metrics on translations, by sacrebleu: of a whole set, from 0 to 100."""

from typing import Any

from trainer_loop.metrics.values import Texts, TextsOfRow

PACKAGE = "sacrebleu"


def sacrebleu(predictions: Texts, references: TextsOfRow, *, tokenize: str | None = None) -> float:
    """BLEU. tokenize: how words are found: 13a (if null), intl, zh, char, none."""
    from sacrebleu.metrics import BLEU

    return float(BLEU(tokenize=tokenize).corpus_score(list(predictions), _by_reference(references)).score)


def chrf(predictions: Texts, references: TextsOfRow, *, word_order: int = 0) -> float:
    """chrF, of n-grams of characters. word_order: 2 for chrF++, which counts pairs of words too."""
    from sacrebleu.metrics import CHRF

    return float(CHRF(word_order=word_order).corpus_score(list(predictions), _by_reference(references)).score)


def _by_reference(references: TextsOfRow) -> list[list[Any]]:
    """The first references of all rows, the second ones, and so on; None for a row that has fewer."""
    rows = [row or [""] for row in references]
    return [[row[number] if number < len(row) else None for row in rows] for number in range(max(map(len, rows)))]
