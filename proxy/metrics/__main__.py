"""`python -m proxy.metrics > docs/metrics.md`: the table, for readers."""

from __future__ import annotations

from proxy.metrics.collector import CLASS_LABELS
from proxy.metrics.histograms import HISTOGRAMS
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
    rows = [
        (name, spec.kind, spec.labels, spec.help) for name, spec in METRICS.items()
    ] + [
        (name, "histogram", CLASS_LABELS, spec.help)
        for name, spec in HISTOGRAMS.items()
    ]
    return HEAD + "".join(
        f"| `{name}` | {kind} | {', '.join(f'`{x}`' for x in labels)} | {text} |\n"
        for name, kind, labels, text in rows
    )


if __name__ == "__main__":
    print(markdown(), end="")
