"""Puts the files of the examples into docs/customise.md: `python -m examples.page`.

A file stands between `<!-- file -->` and the end of the next code block; what the page says around them is written by
hand.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "customise.md"
_LANGUAGES = {".py": "python", ".yaml": "yaml"}


def fill_in(page: str) -> str:
    """The page with every file as it is now."""

    def read(found: re.Match[str]) -> str:
        file = ROOT / found[1]
        return f"<!-- {found[1]} -->\n```{_LANGUAGES[file.suffix]}\n{file.read_text(encoding='utf-8').strip()}\n```"

    return re.sub(r"<!-- (examples/\S+) -->\n```.*?\n```", read, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(fill_in(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} is current")
