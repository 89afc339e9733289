# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Builds the documentation site out of the repository's Markdown; any warning is an error.

    python docs/site/build_site.py [--out build/site]        # needs the extra `docs`

1. Pages are copied to `site-source/pages` beside the site, at the paths that they have in the
   repository, so that links between them hold as they are.
2. A file that a page links and that isn't Markdown becomes a page itself, at its path with '.md'
   behind it. So the site is whole without a code host, and shows the code that it describes.
3. Zensical checks every link and anchor, and builds.
4. No built page may load anything from another host.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from foreign import foreign_resources

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("mkdocs.yml")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
IMAGES = {".svg", ".png"}
LANGUAGES = {".cc": "cpp", ".h": "cpp", ".py": "python", ".pyi": "python", ".sh": "bash"}
LANGUAGES |= {".yaml": "yaml", ".service": "ini", ".target": "ini"}


class BrokenDocs(Exception):
    """The site can't be built as it should be; the message says what to mend."""


def first_pages(root: Path) -> Iterator[Path]:
    """The pages of the site that need no link to be found."""
    for folder in (root, root / "docs", root / "docs" / "results"):
        yield from sorted(folder.glob("*.md"))


def stage(root: Path, pages: Path) -> None:
    """Copy all pages, and all that they link, from the repository `root` to the folder `pages`."""
    waiting, seen = list(first_pages(root)), set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        target = pages / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            target.write_text(with_links_to_code_pages(file, root))
            waiting.extend(linked_files(file, root))
        elif file.suffix in IMAGES:
            shutil.copyfile(file, target)
        else:
            target.with_name(f"{file.name}.md").write_text(code_page(file, root))


def linked_files(page: Path, root: Path) -> Iterator[Path]:
    """The files of the repository that a page links. Raises BrokenDocs if one isn't a file."""
    for link in LINK.finditer(page.read_text()):
        file = (page.parent / link["path"]).resolve()
        if not file.is_file() or not file.is_relative_to(root):
            raise BrokenDocs(
                f"{page.relative_to(root)}: expected links to files of the repository, got "
                f"'{link['path']}'; for a folder, link its README.md or a file in it."
            )
        yield file


def with_links_to_code_pages(page: Path, root: Path) -> str:
    """The text of a page, with links to files that aren't Markdown turned to those files' pages."""

    def turned(link: re.Match[str]) -> str:
        file = (page.parent / link["path"]).resolve()
        is_code = file.is_file() and file.suffix not in {".md", *IMAGES}
        return f"]({link['path']}.md)" if is_code else link[0]

    return LINK.sub(turned, page.read_text())


def code_page(file: Path, root: Path) -> str:
    """A page that shows a file. The search leaves it out."""
    head = "---\nhide: [toc]\nsearch:\n  exclude: true\n---\n"
    fence, language = "~" * 8, LANGUAGES.get(file.suffix, "text")
    title = str(file.relative_to(root)).replace("_", r"\_")
    return f"{head}\n# {title}\n\n{fence}{language}\n{file.read_text()}\n{fence}\n"


def build(root: Path, work: Path) -> Path:
    """Build the site in the folder `work` and return where it is. Raises BrokenDocs."""
    shutil.rmtree(work, ignore_errors=True)
    stage(root, work / "pages")
    config = shutil.copy(CONFIG, work)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", config]
    if subprocess.run(command).returncode:
        raise BrokenDocs("expected a build without warnings, got the ones above; mend them.")
    if found := list(foreign_resources(work / "site")):
        raise BrokenDocs(f"expected pages that load nothing from other hosts, got {found}.")
    return work / "site"


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Builds the documentation site.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    out = parser.parse_args(arguments).out.resolve()
    try:
        built = build(ROOT, out.with_name(f"{out.name}-source"))
    except BrokenDocs as error:
        sys.exit(f"error: {error}")
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(built, out)
    print(f"The site is at {out}; open {out / 'index.html'}.")


if __name__ == "__main__":
    main()
