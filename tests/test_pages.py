"""The pages say what is there: every link, file, heading and command that they name exists, and their lines are short."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from wellworn.experiments.findings.statements import RULE_DIGEST
from wellworn.experiments.study_file import study_names

ROOT = Path(__file__).parent.parent
LONGEST_LINE, LONGEST_README = 160, 150
# Written by programs from types: their lines are as long as these make them.
GENERATED = {Path("experiments/studies/KEYS.md"), Path("experiments/findings/SUMMARY.md"), Path("experiments/stages/MEASUREMENT.md")}
FENCE = re.compile(r"^ *```")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")
PYTHON_FILE = re.compile(r"(?<![\w/.<>-])[\w./-]+\.py\b")
COMMAND = re.compile(r"(?:^|(?<=[\s;&(|]))(?:python -m )?wellworn((?: [a-z][\w.-]*)+)")
# Names of a user's own files, in examples.
OF_A_USER = {"data.py"}


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    # Outside a checkout: the folders that hold pages.
    folders = [ROOT / folder for folder in ("data", "probes", "lora", "experiments")]
    return sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *(p for folder in folders for p in folder.rglob("*.md"))])


PAGES = [page for page in sorted(_tracked()) if page not in GENERATED]


@cache
def _lines(page: Path) -> list[tuple[int, str, bool]]:
    """Return (number, line, whether it is inside fenced code)."""
    inside, found = False, []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line) is not None
        found.append((number, line, inside or fence))
        inside = inside != fence
    return found


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = [line.lstrip("#").strip().lower() for _, line, code in _lines(page) if line.startswith("#") and not code]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def _resolved(name: str, page: Path) -> list[Path]:
    """Return where a file that a page names may be: from the root, from the page's folder, or among the tests of that folder."""
    return [ROOT / name, ROOT / page.parent / name, ROOT / "tests" / page.parent / name]


def _commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line, code in _lines(page):
        for text in [line] if code or line.startswith("    ") else CODE.findall(line):
            # What a session of Python imports is no command.
            for found in () if text.lstrip().startswith(("import ", "from ")) else COMMAND.finditer(text.partition("#")[0]):
                yield number, found[1].split()


@cache
def _names() -> dict[str, set[str]]:
    """Return command → its subcommands, none for a command without any, as the app lists them."""
    from wellworn.experiments.cli import app

    top = typer.main.get_command(app)
    assert isinstance(top, TyperGroup)
    return {name: set(command.commands) if isinstance(command, TyperGroup) else set() for name, command in top.commands.items()}


def _exists(words: list[str]) -> bool:
    if words[0] not in _names():
        return False
    allowed = {*study_names(), "my_study.yaml"} if words[0] == "run" else _names()[words[0]]
    return not allowed or len(words) == 1 or words[1] in allowed


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_lines_are_short(page: Path) -> None:
    assert [number for number, line, code in _lines(page) if len(line) > LONGEST_LINE and not code] == []


def test_the_readme_is_short() -> None:
    lines = _lines(Path("README.md"))
    assert len(lines) <= LONGEST_README
    assert [number for number, line, _ in lines if len(line) > LONGEST_LINE] == []


@pytest.mark.parametrize("symbol", ["own", "κ"])
def test_the_readme_spells_its_symbols_out_before_it_uses_them(symbol: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(rf"(?<![\w-]){re.escape(symbol)}(?![\w\\-])", text)
    assert first
    assert text[first.start() - 2 : first.end() + 3] == f"**{symbol}**:"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for number, line, code in _lines(page):
        for target in [] if code else LINK.findall(line):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            there = Path(*(ROOT / page.parent / path).resolve().relative_to(ROOT.resolve()).parts) if path else page
            if not (ROOT / there).exists() or (anchor and anchor not in _anchors(there)):
                lost.append(f"{page}:{number}: {target}")
    assert lost == []


# The changelog names what files were called before.
@pytest.mark.parametrize("page", [page for page in PAGES if page != Path("CHANGELOG.md")], ids=str)
def test_files_of_python_exist(page: Path) -> None:
    lost = []
    for number, line, code in _lines(page):
        for text in [line] if code else CODE.findall(line):
            for name in set(PYTHON_FILE.findall(text)) - OF_A_USER:
                if not any(path.is_file() for path in _resolved(name, page)):
                    lost.append(f"{page}:{number}: {name}")
    assert lost == []


def test_every_step_of_the_method_has_code_and_a_test() -> None:
    """The table on the front page of probes gives code from that folder, and tests from the same place among the tests."""
    rows = [re.findall(r"`([\w/]+\.py)`", line) for _, line, _ in _lines(Path("probes/README.md")) if line.startswith("|")]
    steps = [row for row in rows if len(row) == 2]
    assert len(steps) >= 20
    for code, test in steps:
        assert (ROOT / "probes" / code).is_file(), code
        assert (ROOT / "tests/probes" / test).is_file(), test


def test_results_name_the_rule_that_statements_are_made_by() -> None:
    # Changes of known origin that were kept back are read by one rule; a page of another one has to be written anew.
    assert f"`{RULE_DIGEST}`" in (ROOT / "experiments/studies/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_exist(page: Path) -> None:
    """Every `wellworn …` that a page names is a command of the app, down to its subcommand or built-in study."""
    assert [f"{page}:{number}: wellworn {' '.join(words)}" for number, words in _commands(page) if not _exists(words)] == []


def test_this_test_sees_commands_files_and_anchors() -> None:
    """What it looks for is on the pages, so that none of the above passes because nothing was found."""
    assert any(words == ["measure"] for _, words in _commands(Path("README.md")))
    assert any(words[:2] == ["traits", "new"] for _, words in _commands(Path("data/README.md")))
    assert _exists(["traits", "new"])
    assert _exists(["run", "quickstart"])
    assert not _exists(["nosuch"])
    assert not _exists(["run", "nosuch"])
    assert not _exists(["traits", "nosuch"])
    assert "known-limits-of-these-readings" in _anchors(Path("experiments/studies/README.md"))
    assert PYTHON_FILE.findall("`engine/run.py`, `probes/geometry/shift.py`") == ["engine/run.py", "probes/geometry/shift.py"]
