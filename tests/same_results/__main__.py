"""Run studies with an older commit and with the working tree, in turn on one machine, and compare what they say.

    python -m tests.same_results COMMIT [STUDY.yaml ...]     # the three studies next to this file unless others are given

Both use one thread, so that sums are taken in one order. Exits with 1 where a `summary.json` differs in a byte.
"""

import difflib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.tiny import ROOT

HERE = Path(__file__).parent
SHOWN = 40


def run(tree: Path, study: Path, runs: Path) -> str:
    """Run a study with the code of a tree; return its summary."""
    package = "wellworn" if (tree / "wellworn").is_dir() else "experiments"
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", package, "run", str(study), "--runs-dir", str(runs)], cwd=tree, env=environment, check=True)
    return (runs / study.stem / "summary.json").read_text(encoding="utf-8")


def main(commit: str, *named: str) -> int:
    studies = [Path(name).resolve() for name in named] or sorted(HERE.glob("*.yaml"))
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        subprocess.run(["git", "worktree", "add", "--detach", str(old), commit], cwd=ROOT, check=True, capture_output=True)
        try:
            for study in studies:
                before, after = (run(tree, study, Path(folder) / f"{name}-runs") for name, tree in (("old", old), ("new", ROOT)))
                differ += before != after
                sys.stdout.write(f"{study.stem}: {'equal' if before == after else 'DIFFERENT'} ({len(after):,} characters)\n")
                lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=1)
                sys.stdout.writelines(f"  {line}\n" for line, _ in zip(lines, range(SHOWN), strict=False))
                sys.stdout.flush()
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    return int(differ > 0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
