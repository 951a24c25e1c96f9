"""The package next to a user's own modules, and the cost of importing it."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import wellworn
from tests.tiny import ROOT

ROOMS = ("data", "probes", "lora", "experiments")
# What only an extra brings along, or a rival of a benchmark.
EXTRAS = ("bitsandbytes", "fastapi", "lm_eval", "openai", "repeng", "steering_vectors", "uvicorn")


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A working folder whose modules are called as our folders are."""
    (tmp_path / "data.py").write_text("WHOSE = 'the user'\n")
    for room in ("experiments", "lora"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("WHOSE = 'the user'\n")
    return tmp_path


def output(folder: Path, *command: str) -> str:
    """Run a command of this Python in a folder; return what it prints."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_next_to_nothing(beside: Path) -> None:
    code = "import sys, wellworn as ww; dir(ww); print(sorted({'torch', 'numpy', 'pydantic', 'transformers'} & set(sys.modules)))"
    assert output(beside, "-c", code) == "[]\n"


def test_every_name_of_the_face_is_there_and_no_other() -> None:
    for name in wellworn.__all__:
        importlib.import_module(getattr(wellworn, name).__module__)
        # A file of that name would have taken its place.
        assert getattr(wellworn, name).__name__ == name
    assert set(wellworn.__all__) <= set(dir(wellworn))
    with pytest.raises(AttributeError, match="no attribute 'sheer'"):
        _ = wellworn.sheer


def test_the_command_line_works_beside_modules_of_the_same_names(beside: Path) -> None:
    assert "pirate" in output(beside, "-m", "wellworn", "traits", "list")


def test_a_launcher_works_beside_modules_of_the_same_names(beside: Path) -> None:
    launched = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "wellworn", "traits", "list")
    assert "pirate" in output(beside, *launched)


def test_a_session_keeps_its_own_modules(beside: Path) -> None:
    code = """
import data, experiments
import wellworn as ww
ww.direction, ww.generate, ww.load
import wellworn.experiments.cli, wellworn.data.catalog
import lora
print(data.WHOSE, experiments.WHOSE, lora.WHOSE, wellworn.data.catalog.trait_names()[0], sep=", ")
"""
    assert output(beside, "-c", code) == "the user, the user, the user, apathetic\n"


def test_no_module_of_ours_is_loaded_under_a_bare_name() -> None:
    missing = []
    for module in pkgutil.walk_packages(wellworn.__path__, "wellworn."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            missing.append((error.name or "").partition(".")[0])
    assert set(missing) <= set(EXTRAS)
    ours = [name for name in sys.modules if name.startswith("wellworn.")]
    assert len(ours) > 100
    bare = [name for name in sys.modules if name.partition(".")[0] in ROOMS and _is_ours(name)]
    assert bare == []


def _is_ours(name: str) -> bool:
    module = sys.modules[name]
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", [])]
    return any(place and Path(place).resolve().is_relative_to(ROOT) for place in places)
