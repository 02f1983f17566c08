"""`python -m loadgen.run.metrics_page >> docs/metrics.md`: the load's part of the page.

Read off what an exporter shows after one request, so that nothing is left out.
"""

from __future__ import annotations

from loadgen.results.progress import Progress
from loadgen.results.results import Result
from loadgen.run.exporter import Exporter

HEAD = """
## Of the load generator

Seen from the client, while a run lasts. `kind` is the trace's, `turn` is 1, 2, 3 or
`more`.

| metric | type | labels | meaning |
|---|---|---|---|
"""


def markdown() -> str:
    """The table, in the order of the exporter."""
    progress = Progress(offered_per_second=1.0, zero_seconds=0.0)
    progress.note_send(0.0)
    progress.note_send(1.0)
    exporter = Exporter(progress)
    exporter.observe(
        Result(
            request_id="", session_id="", turn=0, kind="other", outcome="ok",
            planned_seconds=0.0, sent_seconds=0.0, first_token_seconds=1.0,
            last_token_seconds=2.0, finished_seconds=2.0, output_tokens=2,
        )
    )  # fmt: skip
    rows = []
    for family in exporter.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = [label for label in family.samples[0].labels if label != "le"]
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
