"""MkDocs hook: pages of the site that do not lie in docs/, and links that lead out of it.

Links in the Markdown are those of the checkout, so that they work there, too. A link to another Markdown file leads to its page,
one to a program to a page that shows it, one to any other file to a copy of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
from pathlib import Path
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {  # file of the checkout -> its page
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/results/RESULTS.md": "results.md",
    "examples/which_classes.ipynb": "which-classes.md",
    "examples": "own-code.md",  # which lists them
}
ORIGINS = {page: file for file, page in PAGES.items() if file.endswith((".md", ".ipynb"))}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of ``PAGES``, that of the commands, and every file outside of docs/ that a page links to."""
    for page, origin in ORIGINS.items():
        if origin.endswith(".ipynb"):
            text, pictures = notebook(origin)
            for name, data in pictures.items():
                files.append(File.generated(config, _on_the_site(_in_checkout(page, name)), content=data))
        else:
            text = (ROOT / origin).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "commands.md", content=commands()))
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            path = _in_checkout(page.src_uri, link)
            target = _on_the_site(path)
            if target.startswith("files/") and (ROOT / path).is_file() and target not in files.src_uris:
                if path.endswith(".py"):
                    text = f"# {path}\n\n```python\n{(ROOT / path).read_text(encoding='utf-8')}```\n"
                    files.append(File.generated(config, target, content=text))
                else:
                    files.append(File.generated(config, target, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        return posixpath.relpath(_on_the_site(_in_checkout(page.file.src_uri, link[1])), here or ".")

    return LINK.sub(moved, markdown)


def _in_checkout(page: str, link: str) -> str:
    """Where a link of this page leads, from the root of the checkout."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(ORIGINS.get(page, f"docs/{page}")), link))


def _on_the_site(path: str) -> str:
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}.md" if path.endswith(".py") else f"files/{path}"


def notebook(path: str) -> tuple[str, dict[str, bytes]]:
    """A notebook, as it was executed, in Markdown; and its pictures by the names that the text has for them."""
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter(exclude_input_prompt=True, exclude_output_prompt=True)
    text, more = exporter.from_filename(str(ROOT / path))
    return text, more["outputs"]


def commands() -> str:
    """What every command prints with ``--help``."""
    from dp4tl_fast.__main__ import COMMANDS, main

    parts = [
        "# Commands\n\n`dp4tl-fast NAME` and `python -m dp4tl_fast.NAME` are the same. Every command takes its options from\n"
        "YAML with `--config`, too, and prints its result as JSON with `--json`.\n"
    ]
    for name, purpose in COMMANDS.items():
        shown = io.StringIO()
        with mock.patch.dict(os.environ, COLUMNS="80"), contextlib.redirect_stdout(shown):
            if main([name, "--help"]) != 0:
                raise RuntimeError(f"dp4tl-fast {name} --help failed")
        parts.append(f"## {name}\n\n{purpose[0].upper()}{purpose[1:]}.\n\n```text\n{shown.getvalue().rstrip()}\n```\n")
    return "\n".join(parts)
