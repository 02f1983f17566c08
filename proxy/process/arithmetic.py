"""Linear algebra on one thread: the meter's matrices are small.

Rule: OpenBLAS, inside numpy's wheels, starts a thread for every core when numpy is
imported, and after each product of some thousand rows they spin in wait of the next.
That costs more than the product. Whoever has set a number of threads is followed, and
nothing is left in the environment for children, such as an engine under `meter`.
"""

from __future__ import annotations

import importlib
import os
import sys

THREADS = "OPENBLAS_NUM_THREADS"
"""Read by OpenBLAS when it is loaded, and never again."""
ALSO_READ = ("GOTO_NUM_THREADS", "OMP_NUM_THREADS")
"""What it reads where that is not set."""


def import_numpy_on_one_thread() -> None:
    """Import numpy, unless somebody has, or has said how many threads it may have."""
    if "numpy" in sys.modules or any(
        name in os.environ for name in (THREADS, *ALSO_READ)
    ):
        return
    os.environ[THREADS] = "1"
    try:
        importlib.import_module("numpy")
    finally:
        del os.environ[THREADS]
