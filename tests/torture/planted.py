"""Plant secrets in the environment and behind the judge, and look for them in every file and all output, half-way and at the end."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.experiments.test_secrets import HUB, KEY, echo, parts
from tests.probes.scoring.servers import behaving
from tests.torture.child import command, killed_before_change, start
from tests.torture.ground import Ground
from tests.torture.kills import MOST_CHANGES
from wellworn.probes.scoring import retries

# Names by which the suite and the libraries that it uses know a secret.
ENVIRONMENT = {
    "THE_JUDGE": KEY,
    "HF_TOKEN": HUB,
    "WANDB_API_KEY": f"w-{HUB}",
    "AWS_SECRET_ACCESS_KEY": f"a-{HUB}",
    "PGPASSWORD": f"p-{HUB}",
}


def planted_secrets(ground: Ground, count: int) -> int:
    """Run studies with a judge that echoes its key, killed once and then to their ends; return how many files were looked at."""
    files = 0
    for i in range(count):
        study, runs = ground.pick(i), ground.new_runs()
        for work in (killed_before_change(ground.random.randint(MOST_CHANGES, 4 * MOST_CHANGES), runs, _run(ground, study, runs)), None):
            end = start(work or _run(ground, study, runs)).wait()
            paths = [path for path in runs.rglob("*") if path.is_file()]
            found = [f"exit code {end.code}: {end.said[-1500:]}"] if end.code and not end.killed else []
            found += [f"a secret in {path}" for path in paths if told(path.read_bytes())]
            found += ["a secret in what was shown"] if told(end.said.encode()) else []
            ground.note(f"{len(paths)} files {'of a kill' if work else 'at the end'}", study, runs, found)
            files += len(paths)
    return files


def told(content: bytes) -> list[str]:
    """Return the parts of planted secrets that are in some bytes."""
    return [part for secret in (KEY, HUB) for part in parts(secret) if part.encode() in content]


def _run(ground: Ground, study: str, runs: Path) -> Callable[[], Any]:
    """Return the work of a study whose answers a server grades that tells its key in many ways."""
    with ground.studies[study].open(encoding="utf-8") as file:
        keys = YAML(typ="safe").load(file)

    def work() -> None:
        os.environ.update(ENVIRONMENT)
        retries.FIRST_WAIT = 0.001
        with behaving(echo(KEY)) as server:
            judge = {"url": server.url, "model": "judge", "key_env": "THE_JUDGE", "concurrency": 2}
            path = ground.new_runs() / f"{study}.yaml"
            with path.open("w", encoding="utf-8") as file:
                YAML().dump(keys | {"scores": {"pairs": 2}, "judge": judge}, file)
            command(path, runs)()

    return work
