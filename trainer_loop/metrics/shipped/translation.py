"""Metrics for translations, computed by sacrebleu over a whole set, from 0 to 100."""

from typing import Any

from trainer_loop.metrics.values import Texts, TextsOfRow

PACKAGE = "sacrebleu"


def sacrebleu(predictions: Texts, references: TextsOfRow, *, tokenize: str | None = None) -> float:
    """BLEU. tokenize: the tokenizer that finds words: 13a (default), intl, zh, char, none."""
    from sacrebleu.metrics import BLEU

    return float(BLEU(tokenize=tokenize).corpus_score(list(predictions), _by_reference(references)).score)


def chrf(predictions: Texts, references: TextsOfRow, *, word_order: int = 0) -> float:
    """chrF, from character n-grams. word_order: 2 for chrF++, which also counts pairs of words."""
    from sacrebleu.metrics import CHRF

    return float(CHRF(word_order=word_order).corpus_score(list(predictions), _by_reference(references)).score)


def _by_reference(references: TextsOfRow) -> list[list[Any]]:
    """Return lists of the first references of all rows, of the second ones, and so on; None for rows with fewer."""
    rows = [row or [""] for row in references]
    return [[row[number] if number < len(row) else None for row in rows] for number in range(max(map(len, rows)))]
