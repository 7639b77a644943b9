"""The compiled modules. Everything else stands in pyproject.toml."""

import os

from setuptools import Extension, setup

build = os.environ.get("RENDEZVOUS_NO_EXTENSIONS") != "1"
require = os.environ.get("RENDEZVOUS_REQUIRE_EXTENSIONS") == "1"

extensions = [
    Extension("rendezvous._core._state_c", ["src/_core/state.pyx"], optional=not require),
    Extension("rendezvous._core._roster_c", ["src/_core/roster.pyx"], optional=not require),
    Extension("rendezvous._core._swap_c", ["src/_core/swap.pyx"], optional=not require),
]

setup(ext_modules=extensions if build else [])
