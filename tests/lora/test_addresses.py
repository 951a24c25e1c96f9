"""Where adapters are: folders, the hub (a small one on the loopback), and sums."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.tiny import ROOT
from wellworn.data.errors import InputError
from wellworn.lora.addresses import CONFIG, find_adapter, labels, terms

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {CONFIG: b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"weights", "optimizer.pt": b"never asked for"}
# What the hub holds: (kind, repository) → files.
HELD: dict[tuple[str, str], dict[str, bytes]] = {
    ("models", "org/plain"): FILES,
    ("models", "org/deep"): {f"run/checkpoint-40/{name}": each for name, each in FILES.items()},
    ("datasets", "org/set"): {f"pirate/{name}": each for name, each in FILES.items()},
}


class _Hub(BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        for (kind, repo), files in HELD.items():
            for revision in ("main", "v2", COMMIT):
                info = f"api/{kind}/{repo}/revision/{revision}"
                if path == info:
                    siblings = [{"rfilename": name} for name in files]
                    return self._send(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode(), "application/json")
                if path.startswith(f"api/{kind}/{repo}/tree/{revision}"):
                    tree = [{"type": "file", "path": name, "size": len(each), "oid": "0" * 40} for name, each in files.items()]
                    return self._send(json.dumps(tree).encode(), "application/json")
                start = f"{'datasets/' if kind == 'datasets' else ''}{repo}/resolve/{revision}/"
                if path.startswith(start) and (name := path.removeprefix(start)) in files:
                    type(self).asked.append(name)
                    return self._send(files[name], "application/octet-stream", ETag=f'"{name}"', **{"X-Repo-Commit": COMMIT})
            if path.startswith(f"api/{kind}/{repo}/"):
                return self._send(b"", status=404, **{"X-Error-Code": "RevisionNotFound"})
        return self._send(b"", status=404, **{"X-Error-Code": "RepoNotFound"})

    def _send(self, body: bytes, kind: str = "text/plain", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask(hub: str, cache: Path, *addresses: str) -> list[dict[str, object]]:
    """Let another process look for adapters on that hub, as the client reads its address when it is imported."""
    code = (
        "import json, sys\n"
        "from wellworn.data.errors import InputError\n"
        "from wellworn.lora.addresses import find_adapter\n"
        "for address in sys.argv[1:]:\n"
        "    try:\n"
        "        print(json.dumps({'folder': str(find_adapter(address))}))\n"
        "    except InputError as error:\n"
        "        print(json.dumps({'error': str(error)}))\n"
    )
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *addresses], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_adapters_on_a_hub(hub: str, tmp_path: Path) -> None:
    addresses = (
        "org/plain",
        "org/plain@v2",
        "org/deep/run/checkpoint-40@main",
        "org/set/pirate",
        "org/deep",
        "org/plain@nowhen",
        "org/nobody",
    )
    plain, second, deep, of_set, upper, revision, nobody = ask(hub, tmp_path, *addresses)
    for found in (plain, second, deep, of_set):
        folder = Path(str(found["folder"]))
        assert json.loads((folder / CONFIG).read_text()) == {"peft_type": "LORA"}
        # Nothing but an adapter's own files, and of one commit.
        assert sorted(path.name for path in folder.iterdir()) == [CONFIG, "adapter_model.safetensors"]
        assert COMMIT in str(folder)
    assert str(upper["error"]).endswith("it holds adapters at org/deep/run/checkpoint-40")
    assert "has no revision 'nowhen'" in str(revision["error"])
    assert "the hub gave no answer for it (RepositoryNotFoundError)" in str(nobody["error"])
    assert not [name for name in _Hub.asked if "optimizer" in name]


def test_a_folder_is_taken_as_it_is_and_checkpoints_in_it_are_named(tmp_path: Path) -> None:
    for step in (20, 40):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "run" / f"checkpoint-{step}" / CONFIG).write_text("{}")
    assert find_adapter(tmp_path / "run" / "checkpoint-40") == tmp_path / "run" / "checkpoint-40"
    with pytest.raises(InputError, match=r"holds several folders that may be: .*checkpoint-20, .*checkpoint-40"):
        find_adapter(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(InputError, match="no such folder"):
        find_adapter(tmp_path / "run")


@pytest.mark.parametrize("address", ["./adapters/pirat", "../x/y", "a--b/c", "org/-name", "one", "a/" + "b" * 300, "a" * 5000])
def test_addresses_of_nothing_are_one_line(address: str) -> None:
    with pytest.raises(InputError, match=r"is not a PEFT adapter|the hub gave no answer"):
        find_adapter(address)
    assert labels([address])


def test_a_sum_is_read_as_its_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert terms("a + -2*b/c + 1e-1*org/name@v1") == [(1.0, "a"), (-2.0, "b/c"), (0.1, "org/name@v1")]
    (tmp_path / "a+2*b").mkdir()
    assert terms("a+2*b") == [(1.0, "a+2*b")]
    for wrong in ("", "a+", "two*a", "nan*a", "inf*a", "+a", "a\0b"):
        with pytest.raises(InputError, match="a sum of adapters is written one"):
            terms(wrong)
    with pytest.raises(InputError, match=r"the factor -1e\+30 must lie between -1000 and 1000"):
        terms("a+-1e30*b")


def test_labels_discriminate_adapters_and_sums() -> None:
    found = labels(["/a/one/final", "/a/two/final+0.5*/a/pirate", "/a/pirate"])
    assert found == ["one/final", "two/final+0.5*pirate", "pirate"]
