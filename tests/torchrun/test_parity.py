"""docs/torch-parity.md against torch's modules and ours: no name of torch's may go without a true word."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.distributed.elastic.rendezvous import api as torch_api  # noqa: E402
from torch.distributed.elastic.rendezvous import utils as torch_utils  # noqa: E402

from rendezvous import api, utils  # noqa: E402

TABLE = Path(__file__).parents[2] / "docs/torch-parity.md"
TORCH = "torch.distributed.elastic.rendezvous"
VERDICTS = {"same", "better", "differs", "left out"}


def read_table() -> dict[str, dict[str, str]]:
    """Return the verdict on each name, by module; modules without the prefix of the package."""
    verdicts: dict[str, dict[str, str]] = {}
    module: dict[str, str] = {}
    for line in TABLE.read_text().splitlines():
        if line.startswith("## "):
            heading = re.fullmatch(r"## `rendezvous(?:\.(\w+))?`", line)
            module = {} if heading is None else verdicts.setdefault(heading[1] or "", {})
        elif line.startswith("| `"):
            names, verdict, *_ = (cell.strip() for cell in line.strip("|").split("|"))
            module.update(dict.fromkeys(re.findall(r"`([\w.]+)`", names), verdict))
    return verdicts


VERDICT = read_table()


def load(package: str, module: str) -> ModuleType:
    return importlib.import_module(f"{package}.{module}" if module else package)


def public_names(module: ModuleType) -> list[str]:
    """Return what a module defines or exports: not what it imports for itself."""
    names = set(getattr(module, "__all__", ()))
    for name, value in vars(module).items():
        constant = name.isupper() and isinstance(value, (int, float, str))
        if not name.startswith("_") and (constant or getattr(value, "__module__", None) == module.__name__):
            names.add(name)
    return sorted(names - {"Token"})


def members(owner: Any) -> list[str]:
    """Return the public attributes that a class itself defines, and its constructor if it has one."""
    if not inspect.isclass(owner):
        return []
    return sorted(name for name in vars(owner) if not name.startswith("_") or name == "__init__")


def parameters(function: Any) -> list[tuple[str, Any]]:
    return [(each.name, each.default) for each in inspect.signature(function).parameters.values()]


def takes_the_same(theirs: Any, ours: Any) -> bool:
    """Return whether each call of ``theirs`` is a call of ``ours`` too."""
    expected, found = parameters(theirs), parameters(ours)
    more = found[len(expected) :]
    return found[: len(expected)] == expected and all(default is not inspect.Parameter.empty for _, default in more)


def modules() -> list[str]:
    folder = Path(load(TORCH, "").__file__).parent  # type: ignore[arg-type]
    found = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    absent = set(re.findall(r"^\| `(\w+)` \|", TABLE.read_text().split("## Not here")[1], re.MULTILINE))
    assert absent <= found
    return ["", *sorted(found - absent)]


CASES = [(module, name) for module in modules() for name in public_names(load(TORCH, module))]


@pytest.mark.parametrize(("module", "name"), CASES, ids=[".".join(case) for case in CASES])
def test_each_name_of_torch_s_is_here_or_is_said_to_be_left_out(module: str, name: str):
    verdicts = VERDICT[module]
    assert verdicts.get(name) in VERDICTS, f"docs/torch-parity.md has no line for {module}.{name}"
    if verdicts[name] == "left out":
        assert not hasattr(load("rendezvous", module), name)
        return
    theirs, ours = getattr(load(TORCH, module), name), getattr(load("rendezvous", module), name)
    pairs = [(name, theirs, ours)] if inspect.isfunction(theirs) else []
    for member in members(theirs):
        verdict = verdicts.get(f"{name}.{member}", "same")
        assert (verdict == "left out") is not hasattr(ours, member), f"{name}.{member}"
        if verdict == "same":
            pairs.append((f"{name}.{member}", getattr(theirs, member), getattr(ours, member)))
    for what, their, our in pairs:
        if callable(their):
            assert takes_the_same(their, our), f"{what}: {inspect.signature(their)} and {inspect.signature(our)}"
        elif isinstance(their, (int, str)):
            assert their == our, what


def test_each_line_of_the_table_is_about_something_of_torch_s():
    for module, verdicts in VERDICT.items():
        for name in verdicts:
            owner = load(TORCH, module)
            for part in name.split("."):
                assert hasattr(owner, part), f"{module}.{name}"
                owner = getattr(owner, part)


def test_the_errors_are_kin_as_torch_s_are():
    for name in public_names(torch_api):
        theirs = getattr(torch_api, name)
        if inspect.isclass(theirs) and issubclass(theirs, Exception):
            ours = getattr(api, name)
            assert [base.__name__ for base in ours.__mro__] == [base.__name__ for base in theirs.__mro__]


def outcome(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except ValueError:
        return ValueError


@pytest.mark.parametrize(
    "endpoint",
    [
        *(None, "", "  ", "host", "host:1", " host:65535 ", "127.0.0.1:80", "[::1]", "[::1]:2379", "my-host.local:7"),
        *("host:", "host:65536", "host:-1", "host:x", "host:1.5", "~:1", ":1", "host/path:1", "[]:1", "a b:1"),
    ],
)
def test_endpoints_are_read_as_torch_reads_them(endpoint: str | None):
    ours = outcome(utils.parse_rendezvous_endpoint, endpoint, 4711)
    assert ours == outcome(torch_utils.parse_rendezvous_endpoint, endpoint, 4711)


@pytest.mark.parametrize(
    "value", [None, True, False, 0, 1, 2, -1, "1", "TRUE", "t", "Yes", "y", "0", "f", "No", "x", ""]
)
@pytest.mark.parametrize("method", ["get", "get_as_bool", "get_as_int"])
def test_configuration_values_are_read_as_torch_reads_them(method: str, value: Any):
    results = []
    for parameters_class in (api.RendezvousParameters, torch_api.RendezvousParameters):
        params = parameters_class("backend", "host", "run", 1, 2, key=value)
        results.append((outcome(getattr(params, method), "key"), getattr(params, method)("absent", None)))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "arguments", [("", "h", "r", 1, 1), ("b", "h", "r", 0, 1), ("b", "h", "r", 2, 1), ("b", "", "", 1, 1)]
)
def test_parameters_are_refused_as_torch_refuses_them(arguments: tuple[Any, ...]):
    ours, theirs = (outcome(module.RendezvousParameters, *arguments) for module in (api, torch_api))
    assert (ours is ValueError) == (theirs is ValueError)
