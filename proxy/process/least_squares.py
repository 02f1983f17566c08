"""Least squares with coefficients that are not negative: joules and seconds are not.

Here because both packages fit with it; scipy would be the only other use of scipy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def nonnegative_least_squares(
    squares: FloatArray, products: FloatArray, near: FloatArray | None = None
) -> FloatArray:
    """The x >= 0 that minimises x @ squares @ x - 2 x @ products.

    `squares` is positive definite. Active sets (Lawson and Hanson, Solving Least
    Squares Problems, 1974, chapter 23), on the normal equations. `near` is the
    solution of a problem much like it: where to begin, not where to end.
    """
    size = len(products)
    found = np.zeros(size)
    free = np.zeros(size, np.bool_)
    if near is not None and (near > 0).any():
        chosen = np.flatnonzero(near > 0)
        begun = np.linalg.solve(squares[np.ix_(chosen, chosen)], products[chosen])
        if (begun > 0).all():
            found[chosen], free[chosen] = begun, True
    tolerance = 1e-12 * max(float(np.abs(products).max(initial=0.0)), 1e-300)
    for _ in range(3 * size):
        slope = np.where(free, -np.inf, products - squares @ found)
        entering = int(np.argmax(slope))
        if free.all() or slope[entering] <= tolerance:
            break
        free[entering] = True
        while True:
            wanted = np.zeros(size)
            chosen = np.flatnonzero(free)
            wanted[chosen] = np.linalg.solve(
                squares[np.ix_(chosen, chosen)], products[chosen]
            )
            below = free & (wanted <= 0)
            if not below.any():
                found = wanted
                break
            gone = found[below] - wanted[below]
            step = float((found[below] / np.where(gone > 0, gone, 1.0)).min())
            found = found + step * (wanted - found)
            left = free & (found <= 1e-15 * max(float(found.max()), 1e-300))
            if not left.any():  # rounding: the one that goes furthest below leaves
                left = below & (wanted == wanted[below].min())
            free &= ~left
            found[~free] = 0.0
    return np.asarray(np.maximum(found, 0.0), dtype=np.float64)
