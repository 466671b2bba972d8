"""Builds the docs site into build/site: `python -m docs.site.build`, or `make site`.

It is README, docs/, the public names of trainer_loop from their docstrings, and a gallery of reports. Open
build/site/index.html; no server is needed. Broken links and anchors are errors.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import trainer_loop
from docs.site.pages import GALLERY, ROOT, Pages, list_sources
from examples.gallery import COMPARED, RUNS, write_gallery

FOLDER = ROOT / "build" / "site-pages"
_CONFIG = Path(__file__).with_name("mkdocs.yml")
_ASSETS = ("iframe-worker.js", "site.css", "site.js")


def write_pages(folder: Path, gallery: Path) -> None:
    """All pages as Markdown. gallery: a folder that `write_gallery` wrote."""
    pages = Pages(folder)
    for path in list_sources():
        pages.add(path)
    for name, module in trainer_loop._MODULES.items():
        path = module if module.endswith(f".{name}") else f"{module}.{name}"
        _write(folder / "api" / f"{name}.md", f"::: {path}\n")
    (folder / "assets").mkdir(exist_ok=True)
    for name in _ASSETS:
        shutil.copy(_CONFIG.with_name(name), folder / "assets" / name)
    shutil.copytree(gallery, folder / "gallery", dirs_exist_ok=True)
    _write(folder / "gallery" / "index.md", _list_gallery())


def _list_gallery() -> str:
    """The page that links to those of `write_gallery`."""
    lines = [f"- [{name}]({name}.html): {about}" for name, (about, _) in RUNS.items()]
    compared = " and ".join(COMPARED)
    lines.append(f"- [compare](compare.html): {compared} beside each other, with a paired test on the same rows")
    return (
        "# Gallery of reports\n\nEvery run writes a page, [report.html](../report.md). These are of small new models "
        f"that learned from made-up data in seconds (`{GALLERY}`):\n\n" + "\n".join(lines) + "\n"
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def keep_gallery(folder: Path) -> None:
    """Write the gallery, unless an earlier call has, and the package and the configs have stayed the same."""
    made_by, made_of = folder.with_suffix(".sha256"), _hash_package()
    if folder.is_dir() and made_by.is_file() and made_by.read_text() == made_of:
        return
    made_by.unlink(missing_ok=True)  # a call that is stopped leaves pages of both
    shutil.rmtree(folder, ignore_errors=True)
    write_gallery(folder)
    made_by.write_text(made_of)


def _hash_package() -> str:
    """A checksum of all that a report is made by."""
    places = [*(ROOT / "trainer_loop").rglob("*"), *(ROOT / "configs").glob("*")]
    files = [path for path in places if path.suffix in (".py", ".j2", ".css", ".yaml")]
    contents = (path.read_bytes() for path in [ROOT / GALLERY, *sorted(files)])
    return hashlib.sha256(b"\0".join(contents)).hexdigest()


def main() -> int:
    """Build it; returns the exit code."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    gallery = ROOT / "build" / "gallery"
    keep_gallery(gallery)
    write_pages(FOLDER, gallery)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(_CONFIG)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
