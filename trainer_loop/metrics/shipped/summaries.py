"""Metrics for summaries, computed by rouge-score: means over the rows, from 0 to 1."""

from typing import TypedDict

import numpy as np

from trainer_loop.metrics.values import Texts, TextsOfRow

PACKAGE = "rouge_score"


class RougeScores(TypedDict):
    """F-measures of shared words, of shared pairs of words, and of the longest common subsequence of words."""

    rouge1: float
    rouge2: float
    rougeL: float
    rougeLsum: float  # computed for each line


def rouge(predictions: Texts, references: TextsOfRow, *, use_stemmer: bool = False) -> RougeScores:
    """ROUGE (Lin 2004) with the best reference of each row. use_stemmer: words are equal if their stems are."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(RougeScores.__annotations__), use_stemmer=use_stemmer)
    rows = zip(predictions, references, strict=True)
    scores = [scorer.score_multi(list(texts) or [""], prediction) for prediction, texts in rows]
    rouge1, rouge2, rouge_l, rouge_lsum = (
        float(np.mean([row[name].fmeasure for row in scores])) for name in RougeScores.__annotations__
    )
    return {"rouge1": rouge1, "rouge2": rouge2, "rougeL": rouge_l, "rougeLsum": rouge_lsum}
