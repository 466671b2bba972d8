"""Computes shares of whole numbers exactly, from the decimal that the user wrote."""

from fractions import Fraction


def take_share(share: float, whole: int) -> Fraction:
    """Return the exact product. 0.07 of 100 is 7; floating-point arithmetic would give 7.000000000000001.

    >>> take_share(0.07, 100), take_share(1.1, 50)
    (Fraction(7, 1), Fraction(55, 1))
    """
    return Fraction(repr(float(share))) * whole
