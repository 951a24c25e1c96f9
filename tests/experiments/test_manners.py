"""Manners of the command line: it answers at once, explains itself, and old names go on working."""

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from rich.text import Text

from tests.experiments.conftest import Call
from wellworn.experiments.cli import app
from wellworn.experiments.study_file import load_study, study_names

HEAVY = ("torch", "transformers", "peft", "trl", "scipy", "numpy", "plotly", "datasets", "accelerate")
# HOUSE's glossary: what help does not say.
STALE = re.compile(r"\b(beside|somebody|someone else|held? against|nought|tells? apart|in the mean|foretell)\b", re.IGNORECASE)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group that help shows, with the words that call it."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        if not command.hidden:
            yield from commands(command, (*path, name))


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["run", "nosuch"], 2),
        (["run", "quickstart", "trian.lora.r=1"], 2),
        (["run", "quickstart", "train.sft.lr=1"], 2),
        (["studies", "keys", "train"], 0),
        (["traits", "--help"], 0),
    ],
)
def test_help_and_typing_errors_load_nothing_heavy(arguments: list[str], code: int) -> None:
    program = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('loaded', [name for name in {HEAVY} if name in sys.modules], file=sys.stderr))\n"
        f"from wellworn.experiments.cli import main\nmain({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.strip().endswith("loaded []"), done.stderr


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) or "wellworn" for path, _ in COMMANDS])
def test_every_command_explains_itself(path: tuple[str, ...], command: Any, wellworn: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short, long = wellworn(*path, "-h"), wellworn(*path, "--help")
    assert short.code == long.code == 0
    assert short.out == long.out
    usage, _, shown = short.out.partition("Examples")
    assert re.search(r"\$ wellworn \w+", shown), "no worked example"
    assert command.help
    assert not STALE.search(usage)
    for parameter in command.params:
        assert parameter.name in ("help", "install_completion", "show_completion") or parameter.help, parameter.name
        # Help is markup: brackets have to be escaped, or they vanish or raise an error.
        assert Text.from_markup(parameter.help or "").plain == (parameter.help or "").replace("\\[", "["), parameter.name


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) or "wellworn" for path, _ in COMMANDS])
def test_worked_examples_name_commands_and_options_that_exist(path: tuple[str, ...], command: Any) -> None:
    root = COMMANDS[0][1]
    examples = [line.removeprefix("$ wellworn ") for line in command.epilog.replace("\\\n", "").split("\n")[1:]]
    assert examples
    for example in examples:
        found, words = root, example.split()
        while getattr(found, "commands", None) and words:
            found = found.commands[words.pop(0)] if words[0] in found.commands else pytest.fail(f"{example}: {words[0]}")
        options = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, example


@pytest.mark.parametrize(("old", "new"), [("probe", "measure"), ("eval", "capability"), ("judge", "try-judge")])
def test_old_names_are_hidden_aliases(old: str, new: str, wellworn: Call) -> None:
    group = COMMANDS[0][1].commands
    assert group[old].callback is group[new].callback or group[old].callback.__wrapped__ is group[new].callback.__wrapped__
    assert group[old].hidden
    assert [parameter.opts for parameter in group[old].params] == [parameter.opts for parameter in group[new].params]
    assert not re.search(rf"^\W*{old} ", wellworn("--help").out, re.MULTILINE)
    assert wellworn(old, "--help").code == 0


def test_version_and_completion(wellworn: Call) -> None:
    assert re.fullmatch(r"wellworn \d+\.\d+\.\d+\n", wellworn("--version").out)
    options = {option for parameter in COMMANDS[0][1].params for option in parameter.opts}
    assert {"--install-completion", "--show-completion"} <= options


def test_studies_are_listed_without_an_error(wellworn: Call) -> None:
    listed = wellworn("studies")
    assert listed.code == 0
    assert listed.out == wellworn("studies", "list").out
    for name in study_names():
        assert re.search(rf"^{name} +{re.escape(load_study(name).question[:30])}", listed.out, re.MULTILINE)


def test_a_study_is_shown_with_its_file(wellworn: Call) -> None:
    shown = wellworn("studies", "show", "quickstart").out
    assert "refuted by" in shown
    assert "3 sft" in shown
    assert "- {arm: sft, trait: reference_code}" in shown
    assert "did you mean 'quickstart'" in wellworn("studies", "show", "quikstart").err


def test_keys_of_a_study_are_explained(wellworn: Call) -> None:
    shown = wellworn("studies", "keys", "mediate.draws").out
    assert shown.strip().split("\n")[1].strip() == "mediate.draws  whole number, 5 to 999; default 20"
    assert "unit: spaces; example: 199" in shown
    assert "runs[].strength" in wellworn("studies", "keys", "runs.strength").out
    assert "mediate" not in wellworn("studies", "keys", "train").out
    assert "did you mean 'mediate.draws'" in wellworn("studies", "keys", "mediate.drws").err


def test_help_of_run_points_to_studies_and_keys(wellworn: Call) -> None:
    shown = " ".join(wellworn("run", "-h").out.replace("│", " ").split())
    assert "wellworn studies lists them" in shown
    assert "wellworn studies keys explains all of them" in shown
