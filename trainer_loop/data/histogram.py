"""Histograms of integers, such as the tokens of rows."""

import math

import numpy as np


def choose_whole_edges(values: np.ndarray, *, at_most: int) -> np.ndarray:
    """Return the edges of a histogram of integers whose bars all have the same integer width.

    >>> choose_whole_edges(np.array([3, 9]), at_most=4)
    array([ 3,  5,  7,  9, 11])
    """
    low, high = int(values.min()), int(values.max()) + 1
    width = math.ceil((high - low) / at_most)
    return np.arange(low, high + width, width)
