"""A report as text, as a terminal shows it, and as the elements that a browser would find."""

import io
import json
from html.parser import HTMLParser
from typing import Any

from plotly.offline import get_plotlyjs
from rich.console import Console

from wellworn.experiments.findings.results import Results
from wellworn.experiments.findings.summary import summarise
from wellworn.experiments.report.page import page
from wellworn.experiments.report.terminal import show


def terminal(results: Results) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    show(summarise(results), console)
    return " ".join(console.export_text().split())


def rendered(results: Results) -> str:
    return page(results, summarise(results)).replace(get_plotlyjs(), "/* plotly.js */")


class Elements(HTMLParser):
    """What a browser would find in the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and not self.scripts[-1]:
            self.scripts[-1] = data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def ids(self) -> list[str]:
        return [str(attrs["id"]) for _, attrs in self.tags if "id" in attrs]

    def plots(self) -> list[str]:
        return [str(attrs["id"]) for tag, attrs in self.tags if tag == "div" and attrs.get("class") == "plot"]

    def figures(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.scripts[0])
        return read
