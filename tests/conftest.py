from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Iterator

import hypothesis
import pytest

from rendezvous.etcd.server import EtcdServer

# How long one example takes says how busy the machine is.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-all",
        action="store_true",
        help="fail, instead of skipping, where torch, an etcd binary or the compiled core is missing",
    )


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


@pytest.fixture(scope="session")
def etcd() -> Iterator[EtcdServer]:
    """A real etcd that serves the v2 API, for the whole run."""
    try:
        server = EtcdServer(enable_v2=True)
    except FileNotFoundError as exc:
        pytest.skip(str(exc))
    with server:
        yield server


@pytest.fixture(scope="session")
def etcd3() -> Iterator[EtcdServer]:
    """A real etcd without the v2 API, for the whole run."""
    try:
        server = EtcdServer(enable_v2=False)
    except FileNotFoundError as exc:
        pytest.skip(str(exc))
    with server:
        yield server


@pytest.fixture
def run_id() -> str:
    """A run id that no other test uses."""
    return f"test-{os.getpid()}-{next(_numbers)}"
