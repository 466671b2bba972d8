"""Metrics for texts: answers to questions, and generated texts."""

import operator
import re
import string
from collections import Counter
from collections.abc import Callable
from typing import TypedDict

import numpy as np

from trainer_loop.metrics.values import Texts, TextsOfRow

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnswerScores(TypedDict):
    """Scores of answers, averaged over the questions."""

    answer_f1: float
    answer_exact_match: float


def answer_f1(predictions: Texts, references: TextsOfRow) -> AnswerScores:
    """The two scores of SQuAD: F1 of the words, and share of exact matches, each with the best reference.

    Case, punctuation, articles and repeated spaces are ignored. The answer of a question without references is empty.
    """
    rows = list(zip(predictions, references, strict=True))
    return {
        "answer_f1": float(np.mean([_best(_score_words, prediction, texts) for prediction, texts in rows])),
        "answer_exact_match": float(np.mean([_best(operator.eq, prediction, texts) for prediction, texts in rows])),
    }


def exact_match(predictions: Texts, references: TextsOfRow) -> float:
    """Share of texts that equal a reference, except for spaces at the ends. No references means the empty text."""
    rows = zip(predictions, references, strict=True)
    return float(
        np.mean([prediction.strip() in {text.strip() for text in texts or [""]} for prediction, texts in rows])
    )


def _best(score: Callable[[list[str], list[str]], float], prediction: str, references: list[str]) -> float:
    """Return the score of a prediction with its best reference."""
    reference_words = [words for words in map(_list_words, references) if words] or [[]]
    return max(score(_list_words(prediction), words) for words in reference_words)


def _list_words(text: str) -> list[str]:
    """Return the normalised words of a text, without articles.

    >>> _list_words("The Eiffel-Tower, in  Paris.")
    ['eiffeltower', 'in', 'paris']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _score_words(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    num_shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * num_shared / (len(predicted) + len(expected))
