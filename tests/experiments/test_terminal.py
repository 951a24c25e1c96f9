"""What is shown cannot steer a terminal, fill it or tell a secret; a request to stop is answered."""

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from tests.tiny import ROOT
from wellworn.data.wording import visible
from wellworn.experiments import cli
from wellworn.experiments.terminal import LONGEST_LINE, Terminal, guarded, shorten

HOSTILE = [
    "\x1b[2J\x1b[H",
    "\x1b]0;a title\x07",
    "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2066\u2069",
    "a\rb",
    "\x08\x08",
    "\ufeff",
    "\U000e0041",
]
SECRET = "hf_abcdefghijklmnopqrstuvwxyz0123"


def steers(text: str) -> list[str]:
    return [c for c in text if not c.isprintable() and c not in "\n\t\u00a0\u200c\u200d"]


@given(st.text())
def test_a_visible_text_steers_nothing_and_loses_nothing(text: str) -> None:
    assert not steers(visible(text))
    if not steers(text):
        assert visible(text) == text


def shown(terminal: bool) -> tuple[Console, Callable[[], str]]:
    file = io.StringIO()
    return Terminal(file=file, width=200, force_terminal=terminal, color_system=None), file.getvalue


@pytest.mark.parametrize("text", HOSTILE)
def test_every_way_to_show_a_text_goes_through_the_door(text: str) -> None:
    console, found = shown(terminal=False)
    table = Table(text, title=escape(text))
    table.add_row(escape(text))
    table.add_row(Text(text))
    console.print(escape(text), text.encode(), [text], table, highlight=False)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.log(text)
    assert not steers(found())


def test_progress_may_steer_and_its_titles_may_not() -> None:
    console, found = shown(terminal=True)
    with Progress(console=console, transient=True) as bars:
        bars.add_task(HOSTILE[1], total=3)
        bars.refresh()
    assert "\x1b[" in found()
    assert "\x1b]0;" not in found()


def test_secrets_are_blanked_wherever_lines_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "a-key-of-no-known-shape")
    file = io.StringIO()
    console = Terminal(file=file, width=20)
    table = Table()
    table.add_row(f"a token {SECRET} and a-key-of-no-known-shape")
    console.print(table, f"{SECRET} a-key-of-no-known-shape")
    flat = "".join(file.getvalue().split())
    assert "secret" in flat
    assert "ijklmnop" not in flat
    assert "no-known" not in flat


def test_what_other_libraries_print_is_guarded(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded():
        print(*HOSTILE, SECRET)
        sys.stderr.write("".join(HOSTILE))
        assert not sys.stderr.isatty()
    out, err = capsys.readouterr()
    assert not [c for c in steers(out + err) if c != "\r"]
    assert SECRET not in out


def test_a_line_of_ten_megabytes_is_cut() -> None:
    text = shorten("first\n" + "x" * 10_000_000)
    assert len(text) < LONGEST_LINE + 100
    assert text.startswith("first\n")
    assert text.endswith(f"x… and {10_000_000 - LONGEST_LINE:,} more characters")


def test_a_complaint_is_short_and_steers_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text("a: [" + "x" * 1_000_000 + "\n" + "b" * 1_000_000, encoding="utf-8")
    for arguments in (["run", str(path)], ["run", "quickstart", "question=" + "[" * 200_000], ["run", "a" * 1_000_000], ["run", "\x1b[2J"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert "error:" in err
        assert not steers(err)
        assert len(err) < 3 * LONGEST_LINE


@pytest.mark.parametrize(("number", "imported"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, True)])
def test_a_request_to_stop_is_answered_in_one_line(number: signal.Signals, imported: bool) -> None:
    """While modules are imported, too."""
    code = (
        "import signal, time, wellworn.__main__\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(*args, **options):\n    print('begun', flush=True)\n    time.sleep(60)\n"
    )
    if imported:
        code += "import wellworn.experiments.cli as cli\ncli.run_study = wait\n"
    else:
        code += "print('begun', flush=True)\n"
    code += "wellworn.__main__.main(['run', 'quickstart'])"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.0 if imported else 0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err == ("stopped; run the same command again to continue from here\n" if imported else "stopped\n")
