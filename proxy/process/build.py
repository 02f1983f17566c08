"""The form in which the hot modules run: as Python, or compiled by mypyc.

A figure measured with one is none of the other. This module is compiled with them, so
that its own file tells.
"""

from __future__ import annotations


def build_form() -> str:
    """`compiled` or `pure`."""
    return "pure" if __file__.endswith((".py", ".pyc")) else "compiled"
