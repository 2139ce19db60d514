"""What mkdocs.yml needs beyond Markdown: pages from outside docs, and pages made of sources and records.

Each page and file has in MkDocs the path that it has in the repository, so a relative link means the same here as on a
site that hosts the code, and MkDocs checks all of them. What is linked and is no page, a source file or a folder,
becomes one.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks/records"
PAGES = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "examples/cpp_encoder/README.md",
    "tests/README.md",
)  # fmt: skip
FOLDERS = ("examples/cpp",)  # pages that the navigation names, linked or not
INSTEAD = {"benchmarks/records": "performance/index.md", "include/strop": "api/cpp.md"}
LANGUAGES = {".cc": "cpp", ".cu": "cpp", ".cuh": "cpp", ".h": "cpp", ".py": "python", ".txt": "cmake"}

sys.path.insert(0, str(ROOT / "benchmarks"))
import record as records  # noqa: E402

# ---- Links ----------------------------------------------------------------------------------------------------------

LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)


def outside_fences(markdown: str) -> Iterator[tuple[bool, str]]:
    """The text in pieces, each with whether it may hold links."""
    end = 0
    for fence in FENCE.finditer(markdown):
        yield True, markdown[end : fence.start()]
        yield False, fence[0]
        end = fence.end()
    yield True, markdown[end:]


def resolve(page: str, target: str) -> str:
    """The repository's path of what a page links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def page_of(path: str) -> str | None:
    """The page that shows a path of the repository; None where that is no file or folder that needs one."""
    if path in INSTEAD:
        return INSTEAD[path]
    where = ROOT / path
    if where.is_dir():
        return f"{path}/README.md" if (where / "README.md").exists() else f"{path}/index.md"
    if where.is_file() and where.suffix not in (".md", ".png", ".svg", ".json"):
        return f"{path}.md"
    return None


def linked(page: str, markdown: str) -> set[str]:
    """The repository's paths that a page links to."""
    return {resolve(page, link) for yes, text in outside_fences(markdown) if yes for link in LINK.findall(text)}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to sources and folders lead to their pages."""
    here = page.file.src_uri

    def towards(match: re.Match[str]) -> str:
        to = page_of(resolve(here, match[0]))
        return posixpath.relpath(to, posixpath.dirname(here) or ".") if to else match[0]

    return "".join(LINK.sub(towards, text) if yes else text for yes, text in outside_fences(markdown))


# ---- Pages made of sources ------------------------------------------------------------------------------------------


def code(text: str, language: str) -> str:
    return f"~~~~~~~~ {language}\n{text.rstrip()}\n~~~~~~~~\n"


def source_page(path: str) -> str:
    """One file, or all of a folder."""
    where = ROOT / path
    files = sorted(f for f in where.iterdir() if f.is_file()) if where.is_dir() else [where]
    parts = [f"# {path}\n"]
    for file in files:
        parts += [f"## {file.name}\n"] if len(files) > 1 else []
        parts.append(code(file.read_text(), LANGUAGES.get(file.suffix, "text")))
    return "\n".join(parts)


PYTHON_API = """---
search: {{boost: 4}}
---
# Python

Everything is in the module `strop`. [The losses](../docs/losses.md) has the formulas and what happens at the edges.

{functions}

::: strop._doctor.Report
    options: {{show_root_full_path: false, members: [ok]}}

{integrations}
"""


def python_api() -> str:
    names = re.findall(r'^    "([a-z]\w*)",', (ROOT / "python/strop/__init__.py").read_text(), re.MULTILINE)
    order = ["grpo", "bnpo", "reve", "opti", "rest", "repo", "repl", "save", "load", "doct"]
    names.sort(key=lambda name: (order.index(name[:4]), "fwd" not in name, len(name)))
    modules = sorted((ROOT / "python/strop/integrations").glob("[a-z]*.py"))
    return PYTHON_API.format(
        functions="\n\n".join(f"::: strop.{name}" for name in names),
        integrations="\n\n".join(f"::: strop.integrations.{module.stem}" for module in modules),
    )


def uncommented(lines: list[str]) -> str:
    return "\n".join(re.sub(r"^// ?", "", line) for line in lines)


def cpp_api() -> str:
    """The public headers: what a header begins with as text, the rest as it stands, by its own sections."""
    parts = [
        "# C++\n",
        "The headers of `include/strop`. They need C++20 and nothing else; `launch.h` is for code that nvcc or the "
        "emulator compiles.\n",
    ]
    order = [
        "losses", "norm", "attention", "rotary", "linear", "ragged", "pool", "plan",
        "tensor_view", "status", "parallel", "launch", "emu",
    ]  # fmt: skip
    headers = sorted(
        (ROOT / "include/strop").glob("*.h"),
        key=lambda f: (order.index(f.stem) if f.stem in order else len(order), f.stem),
    )
    for header in headers:
        comment, _, rest = header.read_text().partition("#pragma once\n")
        body = re.sub(r"^}  // namespace strop.*\Z", "", rest, flags=re.MULTILINE | re.DOTALL)
        parts += [f"## strop/{header.name}\n", uncommented(comment.splitlines()) + "\n"]
        first, *sections = re.split(r"^// -+ (.+?) -+\n", body.strip(), flags=re.MULTILINE)
        parts.append(code(first, "cpp"))
        for title, text in zip(sections[::2], sections[1::2], strict=True):
            parts += [f"### {title}\n", code(text.strip("\n"), "cpp")]
    return "\n".join(parts)


class SphinxRoles(griffe.Extension):
    """Docstrings name functions as :func:`grpo_loss`, which help() shows well; here strop's become links."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if not obj.docstring:
            return
        module = obj.module.path

        def link(match: re.Match[str]) -> str:
            name = match[1]
            if "." not in name:
                return f"[`{name}`][{module}.{name}]"
            return f"[`{name}`][{name}]" if name.startswith("strop.") else f"`{name}`"

        obj.docstring.value = re.sub(r":(?:func|class|meth|mod):`~?([\w.]+)`", link, obj.docstring.value)


# ---- Pages made of records ------------------------------------------------------------------------------------------

NAMES = {
    "strop": "strop",
    "eager": "eager",
    "compile_traced": "compile, traced",
    "compile_written": "compile, written out",
    "liger": "Liger",
    "fused_backward": "fused, backward(grad)",
}


def table(heads: list[str], rows: list[list[str]], texts: int) -> str:
    """A table; columns after the first `texts` hold numbers."""
    lines = [heads, ["---" if i < texts else "--:" for i in range(len(heads))], *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def microseconds(us: float | None) -> str:
    if us is None:
        return "–"
    return f"{us:,.0f}" if us >= 100 else f"{us:.1f}"


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.1f}"


def share(part: float | None) -> str:
    return "–" if part is None else f"{part:.0%}" if part >= 0.1 else f"{part:.1%}"


def machine(record: dict) -> str:
    return record.get("gpu") or f"{record['cpu']}, {record['limits']['threads']} threads"


def title(record: dict) -> str:
    return re.sub(r"^NVIDIA ", "", machine(record))


def by_kernel(record: dict) -> dict[str, list[dict]]:
    kernels: dict[str, list[dict]] = {}
    for line in records.comparisons(record):
        kernels.setdefault(line["case"][0], []).append(line)
    return dict(sorted(kernels.items()))


def kernel_table(lines: list[dict]) -> str:
    """All cases of a kernel. A column that would say the same in every line goes into a sentence."""
    impls = [impl for impl in NAMES if any(impl in line["us"] for line in lines)]
    rows = []
    for line in sorted(lines, key=lambda line: (line["case"][2], line["method"], math.prod(line["case"][1]))):
        _, shape, dtype, beta = line["case"]
        row = {"shape": "×".join(map(str, shape)), "dtype": dtype, "beta": "–" if beta is None else f"{beta:g}"}
        row |= {"method": line["method"]} | {f"{NAMES[impl]} µs": microseconds(line["us"].get(impl)) for impl in impls}
        row |= {"× eager": times(line["vs_eager"]), "× compile": times(line["vs_compile"])}
        rows.append(row | {"of floor": share(line["of_floor"])})
    same = [head for head in ("beta", "method", "× compile") if len({row[head] for row in rows}) == 1]
    heads = [head for head in rows[0] if head not in same]
    said = ", ".join(f"{head} {rows[0][head]}" for head in same if rows[0][head] != "–")
    texts = sum(head in ("shape", "dtype", "beta", "method") for head in heads)
    body = table(heads, [[row[head] for head in heads] for row in rows], texts)
    return f"{said[0].upper()}{said[1:]}.\n\n{body}" if said else body


def record_page(path: Path) -> str:
    record = json.loads(path.read_text())
    limits, versions = record["limits"], record["versions"]
    inputs = "; ".join(f"{name.replace('_', ' ')}: {text}" for name, text in limits["inputs"].items())
    parts = [
        f"# {title(record)}\n",
        table(
            ["", ""],
            [
                ["machine", machine(record)],
                ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
                ["commit", f"`{record['commit']}`"],
                ["inputs", inputs],
                ["record", f"[{path.name}](../benchmarks/records/{path.name})"],
            ],
            2,
        ),
        "Columns × say how many times faster strop is; “of floor” is the share of the speed of a copy that moves as "
        "many bytes. [How it is measured](../benchmarks/README.md) explains implementations and methods.\n",
    ]
    for kernel, lines in by_kernel(record).items():
        parts += [f"## {kernel}\n", kernel_table(lines)]
        plots = [RECORDS / f"{path.stem}-{kernel}.png", *sorted(RECORDS.glob(f"{path.stem}-{kernel}-*.png"))]
        for plot in filter(Path.exists, plots):
            parts.append(f"![{kernel} on {machine(record)}: speed-up by shape](../benchmarks/records/{plot.name})\n")
        reasons = {(impl, why) for line in lines for impl, why in line["why"].items() if why}
        parts += [f"Without {NAMES.get(impl, impl)}: {why}\n" for impl, why in sorted(reasons)]
    return "\n".join(parts)


def mean_and_worst(lines: list[dict], ratio: str) -> str:
    values = [line[ratio] for line in lines if line[ratio] is not None]
    return f"{times(records.geometric_mean(values))} ({times(min(values))})" if values else "–"


def performance_page(paths: list[Path]) -> str:
    parts = [
        "# Performance\n",
        "Times faster than plain PyTorch (“eager”) and than the faster form of `torch.compile` in the same run: "
        "geometric means over shapes, the worst shape in brackets. Made of the records, which anyone can repeat: "
        "[how it is measured](../benchmarks/README.md).\n",
    ]
    for path in paths:
        record = json.loads(path.read_text())
        rows = []
        for kernel, lines in by_kernel(record).items():
            groups: dict[tuple, list[dict]] = {}
            for line in lines:
                groups.setdefault((line["case"][2], line["case"][3], line["method"]), []).append(line)
            for (dtype, beta, method), group in sorted(groups.items(), key=str):
                ratios = [mean_and_worst(group, ratio) for ratio in ("vs_eager", "vs_compile")]
                shapes = len({line["case"][1] for line in group})
                rows.append([f"`{kernel}`", dtype, "–" if beta is None else f"{beta:g}", method, str(shapes), *ratios])
        heads = ["function", "dtype", "beta", "method", "shapes", "× eager", "× compile"]
        parts += [f"## [{title(record)}]({path.stem}.md)\n", table(heads, rows, 4)]
    return "\n".join(parts)


# ---- The site -------------------------------------------------------------------------------------------------------


def record_paths() -> list[Path]:
    return sorted(RECORDS.glob("*.json"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills the navigation with what lies in folders."""
    sections = {next(iter(entry)): next(iter(entry.values())) for entry in config.nav or []}
    named = json.dumps(config.nav)
    sections["Using it"] += [f"docs/{f.name}" for f in sorted((ROOT / "docs").glob("*.md")) if f.name not in named]
    for path in reversed(record_paths()):
        sections["Performance"].insert(1, {title(json.loads(path.read_text())): f"performance/{path.stem}.md"})
    sections["Laboratory"] += [str(f.relative_to(ROOT)) for f in sorted((ROOT / "lab").glob("*/README.md"))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made: dict[str, File] = {}

    def add(path: str, content: str | None = None, **options: Any) -> File:
        """A page or file: made of `content`, or the repository's own of that path."""
        if content is None:
            made[path] = File.generated(config, path, abs_src_path=str(ROOT / path), **options)
        else:
            made[path] = File.generated(config, path, content=content, **options)
        made[path].dest_uri = made[path].dest_uri.removeprefix("docs/")
        return made[path]

    own = [f"docs/{file.src_uri}" for file in files if file.src_dir == config.docs_dir]
    for path in (*own, *PAGES, *(str(f.relative_to(ROOT)) for f in sorted((ROOT / "lab").rglob("README.md")))):
        add(path)
    add("api/python.md", python_api())
    add("api/cpp.md", cpp_api())
    add("performance/index.md", performance_page(record_paths()))
    for path in record_paths():
        add(f"performance/{path.stem}.md", record_page(path))
    for path in sorted(RECORDS.iterdir()):
        add(str(path.relative_to(ROOT)))
    for path in FOLDERS:
        add(f"{path}/index.md", source_page(path))
    for path in [path for path in made if path.endswith(".md")]:
        for target in sorted(linked(path, made[path].content_string)):
            to = page_of(target)
            if to and to not in made and not to.endswith("README.md"):
                add(to, source_page(target), inclusion=InclusionLevel.NOT_IN_NAV)
            elif not to and target not in made and (ROOT / target).is_file():
                add(target, inclusion=InclusionLevel.NOT_IN_NAV)
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *made.values()])
