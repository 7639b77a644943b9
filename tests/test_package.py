"""How the package is put together, imported, and which twin it picks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rendezvous

pytestmark = pytest.mark.both_twins

ROOT = Path(__file__).parent.parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # Not from the repository: what is tested is what is installed.
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, **environment},
        check=False,
    )


def test_setup_lists_every_cython_module():
    listed = re.findall(r'extension\("(\w+)"', (ROOT / "setup.py").read_text())
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "src/_core").glob("*.pyx"))


@pytest.mark.parametrize("module", ["roster", "state", "swap"])
def test_setup_lists_the_pxd_files_that_a_module_includes(module):
    """If one of them changes, the module must be built again."""
    folder = ROOT / "src/_core"
    names = {path.stem for path in folder.glob("*.pxd")}
    included, new = set(), {f"{module}.pyx"}
    while new:
        text = (folder / new.pop()).read_text()
        found = {name for name in names if re.search(rf"^from {name} cimport ", text, re.MULTILINE)}
        new |= {f"{name}.pxd" for name in found - included}
        included |= found
    call = re.search(rf'extension\("{module}"(.*?)\)', (ROOT / "setup.py").read_text())
    assert set(re.findall(r'"(\w+)"', call[1])) == included


def test_src_core_holds_cython_and_nothing_else():
    assert {path.suffix for path in (ROOT / "src/_core").iterdir()} <= {".pyx", ".pxd", ".c"}


@pytest.mark.parametrize("module", ["roster", "state", "swap"])
def test_each_compiled_module_has_a_twin_and_a_stub_with_its_names(module):
    twin = (ROOT / f"src/rendezvous/_core/_{module}_py.py").read_text()
    stub = (ROOT / f"src/rendezvous/_core/_{module}_c.pyi").read_text()
    source = (ROOT / f"src/_core/{module}.pyx").read_text()
    names = [re.search(r"__all__ = \[(.*?)\]", text, re.DOTALL)[1] for text in (twin, stub, source)]
    assert names[0] == names[1] == names[2]


# What importing the package must not import: a launcher imports it before it knows whether a job needs it.
_HEAVY = ["torch", "grpc", "google.protobuf", "msgspec", "etcd", "urllib3", "rich", "asyncio", "importlib.metadata"]


def test_importing_the_package_imports_no_dependency():
    result = python(f"import rendezvous, sys; print([name for name in {_HEAVY} if name in sys.modules])")
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_the_v3_handler_does_not_import_what_only_the_v2_backends_need():
    code = "import rendezvous.coordinated.handler, rendezvous.etcd.server, sys; print('etcd' in sys.modules)"
    result = python(code)
    assert (result.stdout.strip(), result.stderr) == ("False", "")


def test_the_messages_of_etcd_load_beside_those_of_another_client():
    code = """
from google.protobuf import descriptor_pb2, descriptor_pool
other = descriptor_pb2.FileDescriptorProto(name="rpc.proto", package="etcdserverpb", syntax="proto3")
other.message_type.add(name="RangeRequest")
descriptor_pool.Default().AddSerializedFile(other.SerializeToString())
from rendezvous.etcd.v3.messages import rpc_pb2
print(rpc_pb2.RangeRequest(key=b"k").SerializeToString())
"""
    result = python(code)
    assert (result.stdout.strip(), result.stderr) == (r"b'\n\x01k'", "")


def test_the_environment_variable_picks_the_pure_twin():
    code = "import rendezvous._core as c; print(c.COMPILED, c.State.__module__, c.Backoff.__module__)"
    result = python(code, RENDEZVOUS_NO_EXTENSIONS="1")
    assert result.stdout.split() == ["False", "rendezvous._core._state_py", "rendezvous._core._swap_py"]


def test_the_compiled_twin_is_the_default():
    pytest.importorskip("rendezvous._core._state_c")
    code = "import rendezvous._core as c; print(c.COMPILED, c.State.__module__)"
    result = python(code, RENDEZVOUS_NO_EXTENSIONS="")
    assert result.stdout.split() == ["True", "rendezvous._core._state_c"]


def copy_of_the_package(folder: Path) -> Path:
    package = folder / "rendezvous"
    shutil.copytree(Path(rendezvous.__file__).parent, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return package


def test_without_extensions_the_pure_twin_is_used(tmp_path):
    copy_of_the_package(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import rendezvous._core as c; print(c.COMPILED)"
    result = python(code, RENDEZVOUS_NO_EXTENSIONS="")
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("broken", ["_roster_c", "_state_c", "_swap_c"])
def test_a_broken_extension_raises(tmp_path, broken):
    (copy_of_the_package(tmp_path) / "_core" / f"{broken}.abi3.so").write_bytes(b"not a library")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import rendezvous._core"
    result = python(code, RENDEZVOUS_NO_EXTENSIONS="")
    assert result.returncode == 1
    assert f"ImportError: {tmp_path}/rendezvous/_core/{broken}.abi3.so" in result.stderr


def test_without_python_etcd_importing_works_and_use_says_what_to_install():
    code = """
import sys
sys.modules["etcd"] = None
try:
    import etcd
except ModuleNotFoundError:
    pass
import rendezvous.legacy.rendezvous, rendezvous.dynamic.backend_v2, rendezvous.etcd.v2.store, rendezvous.etcd.server
from rendezvous import RendezvousParameters, get_rendezvous_handler
for use in (
    lambda: rendezvous.etcd.v2.store.EtcdStore(None, "/x"),
    lambda: rendezvous.dynamic.backend_v2.EtcdRendezvousBackend(None, "job"),
    lambda: get_rendezvous_handler(RendezvousParameters("etcd-v2", "localhost:1", "job", 1, 1)),
    lambda: rendezvous.legacy.rendezvous.EtcdRendezvous(None, "/x", "job", 1, 1, 1, 1),
    lambda: get_rendezvous_handler(RendezvousParameters("etcd", "localhost:1", "job", 1, 1)),
):
    try:
        use()
    except ImportError as exc:
        print(exc)
"""
    result = python(code)
    assert result.stderr == ""
    assert result.stdout.count("pip install python-etcd") == 5
