"""The compiled modules. Everything else is in pyproject.toml."""

import os

from setuptools import Extension, setup

build = os.environ.get("RENDEZVOUS_NO_EXTENSIONS") != "1"
require = os.environ.get("RENDEZVOUS_REQUIRE_EXTENSIONS") == "1"


def extension(name: str, *shared: str) -> Extension:
    """Return a compiled module; ``shared`` are the .pxd files that it includes: if one changes, it is built again."""
    return Extension(
        f"rendezvous._core._{name}_c",
        [f"src/_core/{name}.pyx"],
        depends=[f"src/_core/{each}.pxd" for each in shared],
        optional=not require,
    )


extensions = [
    extension("state", "nodes", "state_decoder", "state_encoder", "state_format", "wire"),
    extension("roster", "wire"),
    extension("swap"),
]

setup(ext_modules=extensions if build else [])
