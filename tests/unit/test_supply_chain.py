"""Lock files, image and CI: the same packages, by their hashes, above their floors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
LOCKS = (
    "requirements.lock", "requirements-dev.lock", ".ci/audit.lock",
    "tests/engines/clients.lock", "tests/engines/engines.lock",
)  # fmt: skip
RUNTIME = [
    *PROJECT["project"]["dependencies"],
    *PROJECT["build-system"]["requires"],
]
DEV = [
    *RUNTIME,
    *EXTRAS["test"],
    *EXTRAS["bus"],
    *EXTRAS["compile"],
    *EXTRAS["postgres"],
    *EXTRAS["studies"],
    *(one for one in EXTRAS["dev"] if not one.startswith("servewatt")),
]


def pins(path: Path) -> Iterator[tuple[Requirement, list[str]]]:
    """Each pinned release of a lock file, with the hashes of its files."""
    for block in path.read_text().replace("\\\n", "").splitlines():
        words = re.split(r"\s+--hash=", block.strip())
        if words[0] and not words[0].startswith("#"):
            yield Requirement(words[0]), words[1:]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_locked_with_hashes(name: str) -> None:
    clients = (ROOT / "tests/engines/clients.in").read_text().splitlines()
    wanted = {
        "requirements.lock": RUNTIME,
        "requirements-dev.lock": DEV,
        "tests/engines/clients.lock": [one for one in clients if one[:1] != "#"],
    }.get(name, [])
    locked: dict[str, list[str]] = {}
    for pin, hashes in pins(ROOT / name):
        (only,) = pin.specifier
        assert only.operator == "=="
        assert pin.url is None
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes)
        assert hashes
        locked.setdefault(normal(pin.name), []).append(only.version)
    for text in wanted:
        requirement = Requirement(text)
        versions = locked[normal(requirement.name)]
        assert all(requirement.specifier.contains(one) for one in versions)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_index(name: str) -> None:
    assert not re.search(r"https?:|file:|^-", (ROOT / name).read_text(), re.MULTILINE)


def test_ci_has_what_the_image_has() -> None:
    image = {(pin.name, str(pin.specifier)) for pin, _ in pins(ROOT / LOCKS[0])}
    ci = {(pin.name, str(pin.specifier)) for pin, _ in pins(ROOT / LOCKS[1])}
    assert image <= ci


def test_image_and_ci_install_what_is_locked() -> None:
    image, ci = ((ROOT / name).read_text() for name in ("Dockerfile", ".ci/run"))
    assert "--require-hashes -r requirements.lock" in image
    assert "--require-hashes -r requirements-dev.lock" in ci
    engines, clients = (
        (ROOT / name).read_text() for name in (".ci/engines", ".ci/clients")
    )
    assert clients.count("--require-hashes") == 1
    assert (
        engines.count("--require-hashes") == 2
    )  # torch from its own index has another
    for text in (image, ci):
        installs = [
            line
            for line in text.splitlines()
            if re.search(r"pip install (?!-q '?\.\[test)", line)
        ]
        assert all("--require-hashes" in one or "--no-deps" in one for one in installs)


def test_every_image_is_a_version_and_can_be_given_by_digest() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    images = [one["image"] for one in services.values() if "image" in one]
    base = re.findall(
        r"^ARG BASE=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    assert len(base) == 1
    for image in images:
        found = re.fullmatch(r"\$\{[A-Z]+_IMAGE:-(.+)\}", image)
        assert found is not None
        base.append(found[1])
    assert all(re.search(r":v?\d+\.\d+", image) for image in base)
