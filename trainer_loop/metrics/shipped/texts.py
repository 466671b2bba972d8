"""Metrics on texts: answers to questions, and texts that a model writes."""

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
    """The two scores of SQuAD: the F1 of the words, and the share of equal answers, each for the best reference.

    Case, punctuation, articles and runs of spaces do not count. A question without references has the empty answer.
    """
    rows = list(zip(predictions, references, strict=True))
    return {
        "answer_f1": float(np.mean([_best(_score_words, prediction, own) for prediction, own in rows])),
        "answer_exact_match": float(np.mean([_best(operator.eq, prediction, own) for prediction, own in rows])),
    }


def exact_match(predictions: Texts, references: TextsOfRow) -> float:
    """The share of texts that equal a reference, but for spaces at the ends; a row without one has the empty text."""
    rows = zip(predictions, references, strict=True)
    return float(np.mean([prediction.strip() in {text.strip() for text in own or [""]} for prediction, own in rows]))


def _best(score: Callable[[list[str], list[str]], float], prediction: str, references: list[str]) -> float:
    """The score of a prediction for the reference that it fits best."""
    normal = [words for words in map(_list_words, references) if words] or [[]]
    return max(score(_list_words(prediction), words) for words in normal)


def _list_words(text: str) -> list[str]:
    """The words that count.

    >>> _list_words("The Eiffel-Tower, in  Paris.")
    ['eiffeltower', 'in', 'paris']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _score_words(predicted: list[str], there: list[str]) -> float:
    if not predicted or not there:
        return float(predicted == there)
    shared = sum((Counter(predicted) & Counter(there)).values())
    return 2 * shared / (len(predicted) + len(there))
