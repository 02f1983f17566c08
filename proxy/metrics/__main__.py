"""`python -m proxy.metrics > docs/metrics.md`: the table, for readers."""

from __future__ import annotations

from proxy.metrics.table import METRICS

HEAD = """# Metrics

What `metering-proxy` exports on its admin port at `/metrics`. This page is made by
`python -m proxy.metrics`; a test keeps it equal to the code. Counters hold settled
energy only and never fall. A figure that is not known is absent, never 0.

| metric | type | labels | meaning |
|---|---|---|---|
"""


def markdown() -> str:
    """The page, in the order of the tables."""
    return HEAD + "".join(
        f"| `{name}` | {spec.kind} | {', '.join(f'`{x}`' for x in spec.labels)} "
        f"| {spec.help} |\n"
        for name, spec in METRICS.items()
    )


if __name__ == "__main__":
    print(markdown(), end="")
