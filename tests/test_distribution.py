"""What the sdist and the wheels hold."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("build")


def build(source: Path, out: Path, *arguments: str, **environment: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "-q", "-o", str(out), *arguments, str(source)],
        check=True,
        env={**os.environ, **environment},
        timeout=240,
    )
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "--sdist")


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def test_the_sdist_holds_the_sources_and_nothing_that_was_built(unpacked):
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert {"src/_core/state.pyx", "src/_core/swap.pyx", "src/rendezvous/py.typed", "LICENSE", "README.md"} <= names
    assert {"tests/conftest.py", "tests/torchrun/train.py", "Makefile", "CHANGELOG.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".c", ".pyc"))]


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_from_the_sdist_holds_the_extensions_and_no_core_of_its_own(unpacked, tmp_path):
    wheel = build(unpacked, tmp_path, "--wheel", RENDEZVOUS_REQUIRE_EXTENSIONS="1")
    names = contents(wheel)
    assert {name.split("/")[0] for name in names} == {"rendezvous"}
    compiled = sorted(name.split("/")[-1].split(".")[0] for name in names if name.endswith((".so", ".pyd")))
    assert compiled == ["_roster_c", "_state_c", "_swap_c"]
    assert {"rendezvous/py.typed", "rendezvous/_core/_state_c.pyi", "rendezvous/_core/_swap_c.pyi"} <= names
    assert {
        f"rendezvous/{path.relative_to(ROOT / 'src/rendezvous')}" for path in ROOT.glob("src/rendezvous/**/*.py")
    } <= names


def test_the_pure_wheel_is_for_every_python(unpacked, tmp_path):
    wheel = build(unpacked, tmp_path, "--wheel", RENDEZVOUS_NO_EXTENSIONS="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in contents(wheel) if name.endswith(".so")]


def test_a_build_that_must_have_the_extensions_fails_without_a_compiler(unpacked, tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        build(unpacked, tmp_path, "--wheel", RENDEZVOUS_REQUIRE_EXTENSIONS="1", CC="/nowhere/cc")


def test_a_build_without_a_compiler_gives_a_wheel_that_works_in_pure_python(unpacked, tmp_path):
    wheel = build(unpacked, tmp_path, "--wheel", RENDEZVOUS_REQUIRE_EXTENSIONS="", CC="/nowhere/cc")
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import rendezvous._core as c;"
        "s = c.State(); s.join(('node', 1, 0), 0); print(c.COMPILED, len(c.State.decode(s.encode())), c.__file__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.split()[:2] == ["False", "1"]
    assert str(wheel) in result.stdout
