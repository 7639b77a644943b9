"""The Markdown files: their links, and the names of files and of make targets in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "docs", "examples", "benchmarks", "benchmarks/results", "tools/etcd")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_each_link_leads_to_a_file_and_a_heading_that_exist(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@each_page
def test_each_file_of_the_clone_that_is_named_exists(page: Path):
    if page.name == "CHANGELOG.md":
        return  # an old entry may name a file that has gone
    names = re.findall(r"`((?:benchmarks|docs|examples|spec|src|tests|tools)/[\w./-]+)`", page.read_text())
    assert [name for name in names if name != "benchmarks/out" and not (ROOT / name).exists()] == []


@each_page
def test_each_make_target_that_is_named_exists(page: Path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^    )make ([a-z][\w-]*)", page.read_text(), re.MULTILINE))
    assert named <= targets


def test_each_test_file_that_a_configuration_names_exists():
    names = ("pyproject.toml", "Makefile", ".github/workflows/ci.yml", ".github/workflows/wheels.yml")
    for name in names:
        if not (ROOT / name).exists():
            continue  # the sdist has no workflows
        text = (ROOT / name).read_text()
        paths = re.findall(r"tests/[\w/]+\.py", text)
        for inner in re.findall(r"tests/\{([\w,.]+)\}", text):
            paths += [f"tests/{part}" for part in inner.split(",")]
        assert [path for path in paths if not (ROOT / path).exists()] == [], name
