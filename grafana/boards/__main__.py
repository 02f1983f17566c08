"""Writes grafana/dashboards/*.json: `python -m grafana.boards`.

A test writes them again and compares.
"""

from __future__ import annotations

from pathlib import Path

from grafana.boards import rendered

FOLDER = Path(__file__).parents[1] / "dashboards"

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)
        print(f"wrote {FOLDER / name}")
