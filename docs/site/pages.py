"""The pages of the docs site: README, docs/ and what they link to, with links that lead from page to page.

A file of code that a page links to becomes a page that shows it, and a folder one that lists its files: the site needs
no repository beside it.
"""

import json
import posixpath
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
_NAMED = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md", "launch/README.md": "launch.md"}
GALLERY = "examples/gallery.py"  # its page shows what it writes
_PICTURES = (".svg", ".png")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".sbatch": "bash", ".md": "markdown"}
_LINK = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")
_CODE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n.*?^\1[ \t]*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def list_sources() -> list[str]:
    """Paths of all pages that are written by hand, or by `make docs`."""
    return [*_NAMED, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def find_links(text: str) -> Iterator[tuple[str, str]]:
    """Relative links of a page outside of code, each as its path, which may be empty, and its anchor."""
    for link in _LINK.findall(_CODE.sub("", text)):
        if "://" not in link and not link.startswith("mailto:"):
            path, _, anchor = link.partition("#")
            yield path, anchor


def list_anchors(text: str) -> set[str]:
    """What links of other pages can name: the headings, as GitHub spells them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {spell_anchor(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)} | {""}


def spell_anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it.

    >>> spell_anchor("Models that `do not` fit: FSDP")
    'models-that-do-not-fit-fsdp'
    """
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")


def name_page(path: str) -> str:
    """The page of a path of the repository: a file, or a folder."""
    if path == GALLERY:
        return "gallery/index.md"
    if path in _NAMED:
        return _NAMED[path]
    if f"{path}/README.md" in _NAMED:  # the page of a folder
        return _NAMED[f"{path}/README.md"]
    if path.startswith("docs/") and path.endswith(".md"):
        return path.removeprefix("docs/")
    if path.endswith(_PICTURES):
        return f"code/{path}"
    return f"code/{path}/index.md" if (ROOT / path).is_dir() else f"code/{path}.md"


@dataclass
class Pages:
    """Pages in a folder. written: paths of the repository that have one; that of the gallery is not written here."""

    folder: Path
    written: set[str] = field(default_factory=lambda: {GALLERY})

    def add(self, path: str) -> None:
        """Write the page of a path of the repository, and those of all that it links to."""
        path = f"{path}/README.md" if f"{path}/README.md" in _NAMED else path
        if path in self.written:
            return
        self.written.add(path)
        target = self.folder / name_page(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(_PICTURES):
            shutil.copy(ROOT / path, target)
            return
        text = self._link(_show(path), path)
        target.write_text(text, encoding="utf-8")

    def _link(self, text: str, path: str) -> str:
        """The page, with links to pages in place of those to files."""
        page, codes = name_page(path), []

        def hide(found: re.Match[str]) -> str:
            codes.append(found[0])
            return f"\0{len(codes) - 1}\0"

        def rewrite(found: re.Match[str]) -> str:
            link = found[0]
            target, hash_, anchor = link.partition("#")
            if "://" in link or not target:
                return link
            linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            self.add(linked)
            return posixpath.relpath(name_page(linked), posixpath.dirname(page) or ".") + hash_ + anchor

        linked = _LINK.sub(rewrite, _CODE.sub(hide, text))
        return re.sub("\0(\\d+)\0", lambda found: codes[int(found[1])], linked)


def _show(path: str) -> str:
    """A page of the repository as it stands; of a folder or other file one that shows it."""
    source = ROOT / path
    if path in list_sources():
        return source.read_text(encoding="utf-8")
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if source.is_dir():
        names = sorted(one.name for one in source.iterdir() if not one.name.startswith((".", "_")))
        # links are relative to the folder above, as those of a file are
        return head + "".join(f"- [{name}]({source.name}/{name})\n" for name in names)
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".ipynb":
        return head + "\n\n".join(_show_cells(text))
    return head + _fence(text, _LANGUAGES.get(source.suffix, "text"))


def _show_cells(text: str) -> Iterator[str]:
    for cell in json.loads(text)["cells"]:
        content = "".join(cell["source"])
        yield content if cell["cell_type"] == "markdown" else _fence(content, "python")


def _fence(text: str, language: str) -> str:
    return f"~~~~~~{language}\n{text.rstrip()}\n~~~~~~\n"
