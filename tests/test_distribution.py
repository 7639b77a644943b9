"""The content of the sdist and the wheels, and the templates for clusters."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from rendezvous import cli
from rendezvous.bench.plan import plan_of
from tests import etcds

ROOT = Path(__file__).parent.parent
PYTHONS = [f"3.{minor}" for minor in range(10, 16)]
pytest.importorskip("build")
pytest.importorskip("installer")
pytest.importorskip("Cython")


# In the environment of the tests. The sdist and one wheel are built as pip does it: with what [build-system] requires.
HERE = ("--wheel", "--no-isolation")


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


@pytest.fixture(scope="module")
def dist(sdist, unpacked, tmp_path_factory) -> Path:
    """A folder as in a release, with one wheel for this platform, renamed as auditwheel would name it."""
    folder = tmp_path_factory.mktemp("dist")
    shutil.copy(sdist, folder)
    shutil.copy(build(unpacked, tmp_path_factory.mktemp("pure"), *HERE, RENDEZVOUS_NO_EXTENSIONS="1"), folder)
    wheel = build(unpacked, tmp_path_factory.mktemp("wheel"), "--wheel", RENDEZVOUS_REQUIRE_EXTENSIONS="1")
    name = wheel.name.replace("-linux_", "-manylinux_2_17_")
    with rewritten(wheel, folder / name) as contents:
        (record,) = (name for name in contents if name.endswith("/WHEEL"))
        contents[record] = contents[record].replace(b"-linux_", b"-manylinux_2_17_")
    return folder


@contextmanager
def rewritten(wheel: Path, to: Path | None = None) -> Iterator[dict[str, bytes]]:
    """Yield a wheel's files by name, to be changed; then write the wheel again, with a correct RECORD."""
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    yield contents
    (record,) = (name for name in contents if name.endswith("/RECORD"))
    rows = [
        f"{name},sha256={urlsafe_b64encode(sha256(content).digest()).rstrip(b'=').decode()},{len(content)}\n"
        for name, content in contents.items()
        if name != record
    ]
    contents[record] = "".join([*rows, f"{record},,\n"]).encode()
    with zipfile.ZipFile(to or wheel, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def check(folder: Path, *arguments: str) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools/check_dist.py"), str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stderr == ""
    return result.returncode, result.stdout


def test_the_sdist_holds_the_files_of_git_and_each_wheel_those_of_the_package(dist):
    assert check(dist) == (0, f"{dist}: the sdist and the wheels hold what they must\n")
    assert check(dist, "--wheels", "3") == (1, f"{dist} holds 2 wheels, not 3\n")


def test_the_messages_of_etcd_are_what_their_proto_gives(tmp_path):
    pytest.importorskip("grpc_tools")
    subprocess.run([sys.executable, str(ROOT / "tools/make_messages.py"), str(tmp_path)], check=True, timeout=60)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("rpc_pb2.*")}
    assert len(made) == 2
    assert made == {path: (ROOT / "src" / path).read_text() for path in made}


def test_the_pure_wheel_is_for_every_python(dist):
    assert [path.name for path in dist.glob("*-py3-none-any.whl")] == ["etcd_rendezvous-0.1.0-py3-none-any.whl"]


@pytest.fixture
def altered(dist, tmp_path) -> Path:
    return Path(shutil.copytree(dist, tmp_path / "dist"))


def drop(ending: str):
    def change(contents: dict[str, bytes]) -> None:
        (name,) = (name for name in contents if name.endswith(ending))
        del contents[name]

    return change


def rename(old: str, new: str):
    def change(contents: dict[str, bytes]) -> None:
        (name,) = (name for name in contents if old in name)
        contents[name.replace(old, new)] = contents.pop(name)

    return change


EXTENSION = f"_swap_c.cpython-{sys.version_info[0]}{sys.version_info[1]}-"


@pytest.mark.parametrize(
    ("kind", "change", "fault"),
    [
        ("built", lambda files: files.update({"_core/state.pyx": b""}), "holds _core/state.pyx, which is not in the"),
        ("built", lambda files: files.update({"rendezvous/_core/swap.c": b""}), "holds rendezvous/_core/swap.c, which"),
        ("built", drop("_core/_state_c.pyi"), "lacks rendezvous/_core/_state_c.pyi"),
        ("built", drop("py.typed"), "lacks rendezvous/py.typed"),
        ("built", rename("/_roster_c.cpython", "/_other_c.cpython"), "lacks the extension rendezvous/_core/_roster_c"),
        ("built", rename(EXTENSION, "_swap_c.cpython-39-"), "which is for another Python"),
        ("built", lambda files: files.update({"rendezvous/api.py": b""}), "holds another rendezvous/api.py than the"),
        ("pure", lambda files: files.update({"rendezvous/_core/_swap_c.abi3.so": b""}), "holds rendezvous/_core/_swap"),
        ("pure", drop("_core/_swap_py.py"), "lacks rendezvous/_core/_swap_py.py"),
    ],
)
def test_a_wheel_with_other_content_is_reported_with_the_difference(altered, kind, change, fault):
    (wheel,) = (path for path in altered.glob("*.whl") if path.name.endswith("-none-any.whl") == (kind == "pure"))
    with rewritten(wheel) as contents:
        change(contents)
    code, output = check(altered)
    assert code == 1
    assert [line for line in output.splitlines() if line.startswith(f"{wheel.name}: ") and fault in line]


def test_a_wheel_that_was_not_repaired_or_has_a_wrong_record_is_reported(altered):
    (wheel,) = (path for path in altered.glob("*.whl") if not path.name.endswith("-none-any.whl"))
    raw = wheel.rename(altered / f"{wheel.name.rpartition('-')[0]}-linux_x86_64.whl")
    assert f"{raw.name}: was not repaired" in check(altered)[1]
    with zipfile.ZipFile(raw, "a") as archive:
        archive.writestr("rendezvous/late.py", b"")
    assert f"{raw.name}: its RECORD is wrong" in check(altered)[1]


def test_a_folder_with_missing_or_other_files_is_reported(altered):
    (altered / "notes").touch()
    next(altered.glob("*-any.whl")).unlink()
    assert check(altered)[1].splitlines() == [
        f"{altered} holds neither sdists nor wheels: notes",
        f"{altered} holds no wheel for every Python (py3-none-any)",
    ]
    next(altered.glob("*.tar.gz")).unlink()
    assert f"{altered} holds 0 sdists, not one" in check(altered)[1]


def test_an_sdist_that_differs_from_the_tree_is_reported(altered, unpacked):
    (sdist,) = altered.glob("*.tar.gz")
    with tarfile.open(sdist, "w:gz") as archive:
        for path in unpacked.rglob("*"):
            name = str(path.relative_to(unpacked.parent))
            if path.is_file() and not name.endswith(("/state.pyx", "/rules.py")):
                archive.add(path, name)
        archive.add(unpacked / "README.md", f"{unpacked.name}/src/_core/state.c")
    output = check(altered)[1]
    assert f"{sdist.name}: lacks src/_core/state.pyx" in output
    assert f"{sdist.name}: holds src/_core/state.c, which git does not know" in output


def test_cibuildwheel_builds_the_wheels_of_the_documentation():
    pytest.importorskip("cibuildwheel")
    pythons = [*(version.replace(".", "") for version in PYTHONS), "314t"]
    built = set()
    for platform, archs in (("linux", "x86_64,aarch64"), ("macos", "x86_64,arm64")):
        command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform]
        result = subprocess.run([*command, "--archs", archs, str(ROOT)], check=True, capture_output=True, text=True)
        built |= set(result.stdout.split())
    platforms = [f"{libc}linux_{arch}" for libc in ("many", "musl") for arch in ("x86_64", "aarch64")]
    assert built == {f"cp{p}-{on}" for p in pythons for on in (*platforms, "macosx_x86_64", "macosx_arm64")}
    # The wheel for every Python is built without cibuildwheel.
    assert f"check_dist.py dist --wheels {len(built) + 1}\n" in (ROOT / ".github/workflows/wheels.yml").read_text()


def test_every_python_is_named_wherever_pythons_are():
    makefile = re.search(r"^PYTHONS \?= (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert makefile.replace("python", "").split() == PYTHONS
    classifiers = re.findall(r'"Programming Language :: Python :: (3\..*)"', (ROOT / "pyproject.toml").read_text())
    assert classifiers == PYTHONS
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    lists = [re.findall(r"3\.\d+", found) for found in re.findall(r"python-version: \|\n((?: +3\.\d+\n)+)", workflow)]
    assert sorted(lists[1], key=PYTHONS.index) == PYTHONS
    assert re.findall(r"3\.\d+", re.search(r"^ +python: (\[.*\])", workflow, re.MULTILINE)[1]) == PYTHONS
    assert f"| CPython {', '.join(PYTHONS)} |" in (ROOT / "docs/releasing.md").read_text()


def test_wheels_are_tested_on_every_etcd():
    matrix = re.search(r"^ +etcd: \[(.*)\]", (ROOT / ".github/workflows/wheels.yml").read_text(), re.MULTILINE)[1]
    assert matrix == ", ".join(f"v{version}" for version in etcds.EXPECTED)


def test_the_workflow_and_the_tests_use_the_same_cibuildwheel():
    files = ("pyproject.toml", ".github/workflows/wheels.yml")
    versions = [re.findall(r"cibuildwheel==([\d.]+)", (ROOT / file).read_text()) for file in files]
    assert versions[0] == versions[1] != []


def test_the_tests_that_cibuildwheel_runs_exist():
    named = re.findall(r"\{project\}/(tests/[\w/.]*)", (ROOT / "pyproject.toml").read_text())
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_wheels_hold_the_benchmark_on_a_cluster_and_no_other(dist):
    for wheel in dist.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        assert "rendezvous/bench/worlds.py" in names
        assert {name.partition("/")[0] for name in names} == {"rendezvous", "etcd_rendezvous-0.1.0.dist-info"}


def test_the_installed_benchmark_needs_no_clone(dist):
    (wheel,) = dist.glob("*-none-any.whl")
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r});"
        "from rendezvous import cli; from rendezvous.bench import worlds;"
        "print(worlds.__file__, [name for name in sys.modules if name.startswith(('benchmarks', 'tests'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.split() == [f"{wheel}/rendezvous/bench/worlds.py", "[]"]


@pytest.fixture
def untouched(unpacked, tmp_path) -> Path:
    """The unpacked sdist without what an earlier build has left there."""
    left = shutil.ignore_patterns("build", "*.so")
    return Path(shutil.copytree(unpacked, tmp_path / "untouched", ignore=left))


def test_a_build_that_requires_the_extensions_fails_without_a_compiler(untouched, tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        build(untouched, tmp_path / "dist", *HERE, RENDEZVOUS_REQUIRE_EXTENSIONS="1", CC="/nowhere/cc")


def test_without_a_compiler_the_wheel_is_pure_and_works(untouched, tmp_path):
    wheel = build(untouched, tmp_path / "dist", *HERE, RENDEZVOUS_REQUIRE_EXTENSIONS="", CC="/nowhere/cc")
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import rendezvous._core as c;"
        "s = c.State(); s.join(('node', 1, 0), 0); print(c.COMPILED, len(c.State.decode(s.encode())), c.__file__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.split()[:2] == ["False", "1"]
    assert str(wheel) in result.stdout


def test_the_kubernetes_manifest_is_an_indexed_job_with_a_valid_command():
    yaml = pytest.importorskip("yaml")
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    manifest = yaml.safe_load((ROOT / "benchmarks/cluster/formation.k8s.yaml").read_text())
    kubernetes_validate.validate(manifest, "1.31", strict=True)
    job = manifest["spec"]
    assert (manifest["kind"], job["completionMode"]) == ("Job", "Indexed")
    (container,) = job["template"]["spec"]["containers"]
    values = {variable["name"]: variable.get("value", "uid") for variable in container["env"]}
    command = [
        re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], word) for word in container["command"] + container["args"]
    ]
    assert command[0] == "rendezvous"
    plan = plan_of(cli._parser().parse_args(command[1:]), {})
    assert plan.hosts == job["completions"] == job["parallelism"]
    assert plan.run_id == "uid"
    (volume,) = job["template"]["spec"]["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert volume["secret"]
    assert plan.conf["password_file"] == f"{mount['mountPath']}/password"
