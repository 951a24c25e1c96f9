"""The pages that are generated from types: `python -m wellworn.experiments.commands.reference_pages` rewrites them."""

from pathlib import Path

from wellworn.experiments.commands.studies import LEFT_OUT, TITLE
from wellworn.experiments.findings.summary import Summary
from wellworn.experiments.reference import markdown
from wellworn.experiments.stages.measurement import Measurement
from wellworn.experiments.study import Study

ROOT = Path(__file__).parents[1]


def pages() -> dict[Path, str]:
    """Return path → text of every page."""
    return {
        ROOT / "studies" / "KEYS.md": markdown(Study, TITLE, LEFT_OUT),
        ROOT / "findings" / "SUMMARY.md": markdown(Summary, "Keys of summary.json", defaults=False, once=True),
        ROOT / "stages" / "MEASUREMENT.md": markdown(Measurement, "Keys of measurement.json", defaults=False, once=True),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
