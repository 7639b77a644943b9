"""Check what a release holds: ``python tools/check_dist.py dist [--wheels 37]``.

The sdist must hold the files that git knows, and each wheel the files of the package in the sdist: none missing, none
added, and the same bytes. A wheel for a platform also holds one extension for each Cython source, built for the Python
in the wheel's name; the wheel for every Python holds none. Prints each fault on a line of its own, and exits with 1 if
there is one.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from installer.exceptions import InstallerError
from installer.sources import WheelFile
from installer.utils import parse_metadata_file, parse_wheel_filename

ROOT = Path(__file__).parent.parent
PACKAGES = "src/"
"""The folder of the package in the sdist; everything outside it is not installed."""
SOURCES = "src/_core/"
GENERATED = ("PKG-INFO", "setup.cfg", "src/etcd_rendezvous.egg-info/")
PURE = "py3-none-any"


def tracked() -> set[str]:
    """Return the files that git knows or would add, without names that start with a dot, such as ``.github``."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name for name in names if not name.startswith(".") and (ROOT / name).exists()}


def read_sdist(path: Path) -> dict[str, bytes]:
    """Return the sdist's files by their name inside its top folder, without those that setuptools adds."""
    files = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if (content := archive.extractfile(member)) is not None:
                files[member.name.partition("/")[2]] = content.read()
    return {name: content for name, content in files.items() if not name.startswith(GENERATED)}


def sdist_faults(files: dict[str, bytes]) -> Iterator[str]:
    """Compare the sdist with the working tree."""
    names = tracked()
    yield from (f"lacks {name}" for name in sorted(names - files.keys()))
    yield from (f"holds {name}, which git does not know" for name in sorted(files.keys() - names))
    yield from (
        f"holds another {name} than the tree"
        for name in sorted(names & files.keys())
        if (ROOT / name).read_bytes() != files[name]
    )


def installed(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield, for each file of the sdist that is installed, its name in a wheel and its name in the sdist."""
    for name in names:
        if name.startswith(PACKAGES) and not name.startswith(SOURCES):
            yield name.removeprefix(PACKAGES), name


def wheel_faults(path: Path, files: dict[str, bytes]) -> Iterator[str]:
    """Compare a wheel with the sdist and with its own name."""
    tag = parse_wheel_filename(path.name).tag
    pythons, abi, platform = tag.split("-")
    with WheelFile.open(path) as wheel:
        try:
            wheel.validate_record(validate_contents=True)
        except InstallerError as exc:
            yield f"its RECORD is wrong: {exc}"
        metadata = parse_metadata_file(wheel.read_dist_info("WHEEL"))
        contents = {
            name: stream.read()
            for (name, _, _), stream, _ in wheel.get_contents()
            if not name.startswith(wheel.dist_info_dir)
        }
    tags = {"-".join(each) for each in itertools.product(*(part.split(".") for part in (pythons, abi, platform)))}
    if (inside := set(metadata.get_all("Tag", []))) != tags:
        yield f"is tagged {sorted(inside)} inside"
    if (metadata["Root-Is-Purelib"] == "true") != (tag == PURE):
        yield f"says Root-Is-Purelib: {metadata['Root-Is-Purelib']}"
    if platform.startswith("linux_"):
        yield "was not repaired: it runs only on this machine, and the index refuses it"

    extensions = sorted(name for name in contents if name.endswith((".so", ".pyd")))
    built = [name.partition(".")[0] for name in extensions]
    modules = [Path(name).stem for name in files if name.startswith(SOURCES) and name.endswith(".pyx")]
    wanted = [] if tag == PURE else sorted(f"rendezvous/_core/_{module}_c" for module in modules)
    yield from (f"lacks the extension {name}" for name in wanted if name not in built)
    yield from (f"holds {name}" for name, stem in zip(extensions, built, strict=True) if stem not in wanted)
    yield from (f"holds {name}, which is for another Python" for name in extensions if f"-{abi[2:]}-" not in name)

    package = dict(installed(files))
    others = contents.keys() - set(extensions)
    yield from (f"lacks {name}" for name in sorted(package.keys() - others))
    yield from (f"holds {name}, which is not in the package" for name in sorted(others - package.keys()))
    yield from (
        f"holds another {name} than the sdist"
        for name in sorted(others & package.keys())
        if contents[name] != files[package[name]]
    )


def faults(folder: Path, count: int | None) -> Iterator[str]:
    """Check a folder of one sdist and its wheels, of which there are ``count``."""
    sdists, wheels = sorted(folder.glob("*.tar.gz")), sorted(folder.glob("*.whl"))
    if others := sorted({path.name for path in folder.iterdir()} - {path.name for path in sdists + wheels}):
        yield f"{folder} holds neither sdists nor wheels: {', '.join(others)}"
    if len(sdists) != 1:
        yield f"{folder} holds {len(sdists)} sdists, not one"
        return
    files = read_sdist(sdists[0])
    yield from (f"{sdists[0].name}: {fault}" for fault in sdist_faults(files))
    if not wheels or count not in (None, len(wheels)):
        yield f"{folder} holds {len(wheels)} wheels, not {count or 'any'}"
    for path in wheels:
        if not path.name.startswith(sdists[0].name.removesuffix(".tar.gz") + "-"):
            yield f"{path.name}: is of another version than {sdists[0].name}"
        yield from (f"{path.name}: {fault}" for fault in wheel_faults(path, files))
    if not any(path.name.endswith(f"-{PURE}.whl") for path in wheels):
        yield f"{folder} holds no wheel for every Python ({PURE})"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Check what a release holds.")
    parser.add_argument("folder", type=Path, help="where the sdist and its wheels are, and nothing else")
    parser.add_argument("--wheels", type=int, help="how many wheels there must be")
    arguments = parser.parse_args()
    found = list(faults(arguments.folder, arguments.wheels))
    print(*found or [f"{arguments.folder}: the sdist and the wheels hold what they must"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
