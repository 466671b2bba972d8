"""Puts the files of the examples into docs/customise.md: `python -m examples.page`.

A file stands between `<!-- file -->` and the end of the next code block, and the table of their lengths between
`<!-- lengths -->` and the next blank line; what the page says around them is written by hand.
"""

import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "customise.md"
_LANGUAGES = {".py": "python", ".yaml": "yaml"}

_PEERS = ("with_trainer.py", "with_lightning.py")

# What it is, its folder, our file in it, and the lines of a config that name it.
BESIDE = [
    ("focal loss", "focal_loss", "focal.py", 1),
    ("contrastive pairs", "contrastive_pairs", "contrastive.py", 1),
    ("distillation", "distillation", "distil.py", 3),
    ("R-Drop", "r_drop", "r_drop.py", 1),
    ("adversarial training", "adversarial", "fgm.py", 1),
]


def fill_in(page: str) -> str:
    """The page with every file, and the lengths of files, as they are now."""

    def read(found: re.Match[str]) -> str:
        file = ROOT / found[1]
        return f"<!-- {found[1]} -->\n```{_LANGUAGES[file.suffix]}\n{file.read_text(encoding='utf-8').strip()}\n```"

    lengths = f"<!-- lengths -->\n{tell_lengths()}\n\n"
    page = re.sub(r"<!-- lengths -->\n.*?\n\n", lambda _: lengths, page, flags=re.DOTALL)
    return re.sub(r"<!-- (examples/\S+) -->\n```.*?\n```", read, page, flags=re.DOTALL)


def tell_lengths() -> str:
    """A table of lines of code: of each example here, with transformers.Trainer and with Lightning."""
    rows = ["| change | here: code + config | transformers.Trainer | Lightning |", "|---|---|---|---|"]
    for title, folder, file, config_lines in BESIDE:
        ours, *theirs = (
            count_lines((ROOT / "examples" / folder / name).read_text(encoding="utf-8")) for name in (file, *_PEERS)
        )
        links = [f"[{lines}](../examples/{folder}/{name})" for lines, name in zip(theirs, _PEERS, strict=True)]
        rows.append(f"| {title} | {ours} + {config_lines} | {' | '.join(links)} |")
    return "\n".join(rows)


def count_lines(source: str) -> int:
    """Lines with code on them: neither blank, nor comments, nor docstrings."""
    lines: set[int] = set()
    before = tokenize.INDENT
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_docstring = token.type == tokenize.STRING and before in (tokenize.INDENT, tokenize.NEWLINE, tokenize.NL)
        is_layout = token.type in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.string and not is_layout and not is_docstring:
            lines.update(range(token.start[0], token.end[0] + 1))
        before = token.type
    return len(lines)


if __name__ == "__main__":
    PAGE.write_text(fill_in(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} is current")
