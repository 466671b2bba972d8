"""docs/customise.md shows the examples as they are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_every_file_as_it_is():
    from examples.page import PAGE, fill_in

    page = PAGE.read_text(encoding="utf-8")
    assert fill_in(page) == page, "run python -m examples.page"
    assert page.count("<!-- examples/") >= 18
    assert "| focal loss | 3 + 1 | [" in page
    assert "```python\n```" not in page


def test_its_examples_exist():
    page = (ROOT / "docs" / "customise.md").read_text(encoding="utf-8")
    for config in re.findall(r"config=(examples/\S+\.yaml)", page):
        assert (ROOT / config).exists()
