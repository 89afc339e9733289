# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Links of all Markdown files, as a code host follows them, and the navigation of the site."""

import re
import urllib.parse
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"
PAGES = sorted(
    path
    for folder in ("*.md", "docs/**/*.md", "examples/**/*.md", "configs/**/*.md")
    for path in ROOT.glob(folder)
)
MARKDOWN = MarkdownIt("commonmark").enable("table")


@cache
def tokens(page: Path):
    return MARKDOWN.parse(page.read_text())


def links(page: Path) -> list[str]:
    """What a page's links and images point to."""
    inline = (child for token in tokens(page) for child in token.children or ())
    found = (child.attrs.get("href") or child.attrs.get("src") for child in inline)
    return [link for link in found if link]


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, by the rule of code hosts."""
    headings = [tokens(page)[i + 1] for i, t in enumerate(tokens(page)) if t.type == "heading_open"]
    texts = ["".join(child.content for child in heading.children) for heading in headings]
    names = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in texts]
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        found.append(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return frozenset(found)


def is_external(link: str) -> bool:
    return urllib.parse.urlsplit(link).scheme != ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_code_host_finds_what_links_point_to(page):
    for link in filter(lambda link: not is_external(link), links(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link}: there is no such file"
        assert target.is_relative_to(ROOT), f"{link}: leads out of the repository"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: {target.name} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_other_hosts_have_the_form_of_one(page):
    for link in filter(is_external, links(page)):
        parts = urllib.parse.urlsplit(link)
        assert parts.scheme == "https", f"{link}: expected https"
        assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), f"{link}: expected a host"
        assert not re.search(r"[\s<>\"'`]|[.,;]$", link), f"{link}: ends or breaks oddly"


def paths_in(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [path for part in parts for path in paths_in(part)]


def test_the_navigation_has_every_page_of_the_docs_and_no_other():
    listed = set(paths_in(yaml.safe_load(CONFIG.read_text())["nav"]))
    pages = {str(path.relative_to(ROOT)) for path in PAGES}
    assert listed - pages == set(), "not there: take them out of docs/site/mkdocs.yml"
    missing = {page for page in pages if page.startswith("docs/")} - listed
    assert missing == set(), "expected in the navigation, docs/site/mkdocs.yml"
