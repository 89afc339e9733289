# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds what pages of a built site would load from other hosts: scripts, styles, fonts, images."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

LOADING = {"src", "srcset", "data", "poster", "href", "xlink:href"}
"""Attributes by which an element names what it shows or runs."""

NOT_LOADED = {"a", "area"}
"""Elements whose `href` is loaded only when a reader follows it."""

LINK_ONLY = {"canonical", "alternate", "prev", "next", "author", "license"}
"""Kinds of <link> that load nothing."""

FOREIGN = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
FOREIGN_IN_STYLE = re.compile(
    r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s;]+)""", re.IGNORECASE
)


class _Loads(HTMLParser):
    """Collects the foreign addresses that a page's elements load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._is_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_style = tag == "style"
        values = {name: value or "" for name, value in attrs}
        is_followed = tag in NOT_LOADED or (
            tag == "link" and set(values.get("rel", "").split()) <= LINK_ONLY
        )
        self.found += FOREIGN_IN_STYLE.findall(values.get("style", ""))
        if not is_followed:
            found = (value for name, value in values.items() if name in LOADING)
            self.found += [value for value in found if FOREIGN.match(value)]

    def handle_data(self, data: str) -> None:
        if self._is_style:
            self.found += FOREIGN_IN_STYLE.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self._is_style = False


def foreign_in_page(html: str) -> list[str]:
    """The addresses on other hosts that a page loads, its inline styles included."""
    loads = _Loads()
    loads.feed(html)
    return loads.found


def foreign_resources(site: Path) -> Iterator[str]:
    """'FILE: ADDRESS' for all that pages and style sheets of a site load from other hosts."""
    for file in sorted(site.rglob("*")):
        if file.suffix == ".html":
            found = foreign_in_page(file.read_text())
        elif file.suffix in {".css", ".svg"}:
            found = FOREIGN_IN_STYLE.findall(file.read_text())
        else:
            continue
        yield from (f"{file.relative_to(site)}: {address}" for address in found)
