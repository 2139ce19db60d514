"""The documentation's site: it builds without a warning, its links lead somewhere, it loads nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
MISSING = [name for name in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: `make docs` installs it")

LINKS = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a page links to, as (tag, target), and the anchors that it has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if LINKS.get(tag) in given:
            self.links.append((tag, given[LINKS[tag]]))


def wrong_links(site: Path) -> list[str]:
    """Links within a site that lead nowhere, and what its pages load from elsewhere."""
    pages = {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}  # whose links are absolute
    found = []
    for file, page in pages.items():
        for tag, target in page.links:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                found += [f"{file}: loads {target}"] if tag != "a" else []
                continue
            to = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            to = to / "index.html" if to.is_dir() else to
            anchor = unquote(parts.fragment)
            if not to.is_file() or anchor and anchor not in pages[to].anchors | {"__search"}:
                found.append(f"{file}: {target}")
    return found


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    # Without --quiet, under which warnings do not count.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=root, text=True, capture_output=True, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"WARNING|ERROR", done.stderr), done.stderr
    return folder


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    assert wrong_links(site) == []
    styles = [file for file in site.rglob("*.css") if re.search(r"url\(\s*[\"']?(https?:)?//", file.read_text())]
    assert styles == []


def test_wrong_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here"></a><a href="https://a.test/"></a><a href="c.html"></a><a href="b.html#there"></a>'
        '<script src="https://a.test/a.js"></script><img src="none.png">'
    )
    found = {text.rpartition(" ")[2] for text in wrong_links(tmp_path)}
    assert found == {"c.html", "b.html#there", "https://a.test/a.js", "none.png"}


def test_every_function_is_described(site: Path) -> None:
    import strop

    page = Page(site / "api/python.html")
    functions = [name for name in strop.__all__ if not name.startswith("_")]
    assert [name for name in functions if f"strop.{name}" not in page.anchors] == []
    text = (site / "api/python.html").read_text()
    assert ":func:" not in text and ":class:" not in text


def test_every_header_is_there(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "api/cpp.html").read_text())
    assert [f.name for f in (ROOT / "include/strop").glob("*.h") if f"strop/{f.name}" not in text] == []
    assert "Status reverse_kl_loss(const ReverseKlInputs" in text


def test_every_figure_is_there(site: Path) -> None:
    """A line for each case of each record, a link to the record and each of its plots."""
    records = sorted((ROOT / "benchmarks/records").glob("*.json"))
    assert records
    for path in records:
        text = (site / f"performance/{path.stem}.html").read_text()
        ours = [row for row in json.loads(path.read_text())["rows"] if row["impl"] == "strop"]
        lines = [re.findall(r"<td[^>]*>(.*?)</td>", line)[:2] for line in text.split("<tr>")]
        cases = [["×".join(map(str, row["shape"])), row["dtype"]] for row in ours]
        assert sorted(line for line in lines if line in cases) == sorted(cases)
        for plot in path.parent.glob(f"{path.stem}-*.png"):
            assert f"benchmarks/records/{plot.name}" in text
        assert (site / f"benchmarks/records/{path.name}").read_bytes() == path.read_bytes()


def test_what_is_linked_becomes_a_page(site: Path) -> None:
    source = (ROOT / "examples/debug_a_kernel/softmax.cu").read_text()
    text = re.sub(r"<[^>]+>", "", (site / "examples/debug_a_kernel/softmax.cu.html").read_text())
    assert "__global__ void" in source and "__global__ void" in text
    assert "losses.h" in (site / "examples/cpp/index.html").read_text()


def test_broken_links_are_errors(tmp_path: Path) -> None:
    """Of a page in docs, in a copy of what the site is made of."""
    links = ["none.md", "../examples/none.cu", "losses.md#none", "../lab/none", "/losses.md"]
    for name in ("docs", "lab", "benchmarks", "examples", "include", "python", "tests", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    with (tmp_path / "docs/demo.md").open("a") as page:
        page.write("".join(f"\n[a link]({link})\n" for link in links))
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert [link for link in links if f"'{link}'" not in done.stderr] == []
