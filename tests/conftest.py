from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from rendezvous import config
from rendezvous.config import password
from rendezvous.etcd.server import EtcdServer
from tests import etcds

# The time that one example takes depends on the load of the machine.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-all",
        action="store_true",
        help="fail, instead of skipping, if torch, an etcd binary or the compiled core is missing",
    )
    parser.addoption(
        "--require-etcds",
        action="store_true",
        help="fail if an etcd release that 'make etcd' builds is missing",
    )

    parser.addoption(
        "--after-make-test",
        action="store_true",
        help="leave out the tests of the v2 API if this is the etcd on which 'make test' runs them",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-etcds") and etcds.missing():
        raise pytest.UsageError(f"etcd {', '.join(etcds.missing())} not found in build/etcd; run 'make etcd'")


def pytest_report_header() -> str:
    from rendezvous._core import COMPILED

    return f"rendezvous core: {'compiled' if COMPILED else 'pure'}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and item.config.getoption("--require-all"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --require-all forbids: {report.longrepr}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    # A module that skips itself while it is imported is skipped here, and never gets to the hook above.
    outcome = yield
    report = outcome.get_result()
    if report.skipped and collector.config.getoption("--require-all"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --require-all forbids: {report.longrepr}"


@pytest.fixture(scope="session", params=["compiled", "pure"])
def twin(request: pytest.FixtureRequest) -> str:
    """The suffix of the core's modules; tests with it run over both twins."""
    if request.param == "compiled" and importlib.util.find_spec("rendezvous._core._state_c") is None:
        pytest.skip("the compiled core is not built")
    return {"compiled": "c", "pure": "py"}[request.param]


@pytest.fixture
def State(twin: str) -> Any:
    """The state of the dynamic rendezvous, of one twin."""
    return importlib.import_module(f"rendezvous._core._state_{twin}").State


@pytest.fixture(scope="session")
def CompiledState() -> Any:
    """The compiled state; skips the test if it is not built."""
    return pytest.importorskip("rendezvous._core._state_c").State


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Where they cannot run, or need not run again, the tests of the v2 API are left out by name, not skipped.
    if etcds.without_v2() or (config.getoption("--after-make-test") and etcds.v2_by_default()):
        left_out = [item for item in items if _needs_v2(item)]
        items[:] = [item for item in items if not _needs_v2(item)]
        config.hook.pytest_deselected(items=left_out)


def _needs_v2(item: pytest.Item) -> bool:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    fixtures = getattr(item, "fixturenames", ())
    return "v2_binary" in fixtures or item.get_closest_marker("v2") is not None or "etcd-v2-watch" in parameters


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(etcds.summary())


@pytest.fixture(scope="session")
def v2_binary() -> str:
    """The newest etcd that serves the v2 API."""
    return etcds.newest_with_v2()


@pytest.fixture(scope="session")
def v3_binary() -> str:
    """The newest etcd."""
    return etcds.newest()


@pytest.fixture(scope="session")
def etcd(v2_binary: str) -> Iterator[EtcdServer]:
    """A real etcd that serves the v2 API, for the whole run."""
    with EtcdServer(etcd_binary_path=v2_binary, enable_v2=True) as server:
        yield server


@pytest.fixture(scope="session")
def etcd3(v3_binary: str) -> Iterator[EtcdServer]:
    """A real etcd without the v2 API, for the whole run."""
    with EtcdServer(etcd_binary_path=v3_binary, enable_v2=False) as server:
        yield server


@pytest.fixture(autouse=True)
def forgotten_password() -> Iterator[None]:
    """Forget what the process remembers of passwords: one from the environment, and which warning was given."""
    yield
    password._remembered = None
    config._warn_of_plain_http.cache_clear()


@pytest.fixture
def run_id() -> str:
    """A run id that no other test uses."""
    return f"test-{os.getpid()}-{next(_numbers)}"
