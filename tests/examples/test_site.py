"""Links of README and docs lead somewhere, and the docs site can be built of them."""

import re
import shutil
from pathlib import Path

import pytest

from docs.site import build
from docs.site.pages import ROOT, find_links, list_anchors, list_sources


@pytest.mark.parametrize("page", list_sources())
def test_links_lead_to_what_is_there(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    for path, anchor in find_links(text):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        if target.suffix == ".md":
            assert anchor in list_anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


def test_code_and_other_sites_are_no_links():
    text = "[a](b.md#c) `[x](y)` [z](https://z.org)\n\n```\n[k](l)\n```\n![p](p.svg)\n"
    assert list(find_links(text)) == [("b.md", "c"), ("p.svg", "")]


def test_pages_link_to_pages(tmp_path: Path):
    (tmp_path / "gallery").mkdir()
    build.write_pages(tmp_path / "pages", tmp_path / "gallery")
    start = (tmp_path / "pages" / "index.md").read_text()
    assert "[docs/config.md](config.md)" in start
    assert "(code/trainer_loop/loop.py.md)" in start
    assert "(code/configs/index.md)" in start
    assert "(gallery/index.md)" in start
    folder = (tmp_path / "pages" / "code" / "configs" / "index.md").read_text()
    assert "- [imdb.yaml](imdb.yaml.md)" in folder
    notebook = (tmp_path / "pages" / "code" / "examples" / "notebook" / "reviews.ipynb.md").read_text()
    assert "~~~~~~python\n" in notebook
    assert (tmp_path / "pages" / "api" / "Task.md").read_text() == "::: trainer_loop.tasks.task.Task\n"
    written = {str(path.relative_to(tmp_path / "pages")) for path in (tmp_path / "pages").rglob("*.md")}
    in_menu = set(re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "docs/site/mkdocs.yml").read_text(), re.MULTILINE))
    assert in_menu == {path for path in written if not path.startswith("code/")}
    benchmarks = (tmp_path / "pages" / "benchmarks.md").read_text()
    assert benchmarks.startswith("# Benchmarks\n")  # though README links to the folder
    assert "](code/benchmarks/plots/loading.svg)" in benchmarks
    assert (tmp_path / "pages" / "code" / "benchmarks" / "plots" / "loading.svg").is_file()


def test_the_gallery_is_made_anew_where_package_or_configs_changed_or_it_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("trainer_loop/loop.py", "configs/imdb.yaml", build.GALLERY):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    written, folder = list[Path](), tmp_path / "build" / "gallery"

    def write(target: Path) -> None:
        written.append(target)
        target.mkdir(parents=True)
        if len(written) == 4:
            raise KeyboardInterrupt
        (target / f"{len(written)}.html").touch()

    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "write_gallery", write)
    for name in ("trainer_loop/loop.py", "configs/imdb.yaml"):
        build.keep_gallery(folder)
        build.keep_gallery(folder)
        (tmp_path / name).write_text("two")
    assert len(written) == 2
    build.keep_gallery(folder)
    assert [path.name for path in folder.iterdir()] == ["3.html"]  # no page of a run that there is no more
    shutil.rmtree(folder)
    with pytest.raises(KeyboardInterrupt):
        build.keep_gallery(folder)
    build.keep_gallery(folder)
    assert len(written) == 5


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_site_is_built_without_a_broken_link_and_loads_nothing_from_elsewhere():
    pytest.importorskip("mkdocs")
    assert build.main() == 0
    site = ROOT / "build" / "site"
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?://[^"]*)', page.read_text())
        assert loaded == [], page
    assert "Run forward and backward over all microbatches" in (site / "api" / "TrainingLoop.html").read_text()
    reports = list((site / "gallery").glob("*.html"))
    assert {page.stem for page in reports} == {"index", "compare", *build.RUNS}
    assert all(page.stat().st_size < 200_000 for page in reports)
