"""The test that docs/customise.md hands to a reader passes for the loss of the README."""

import re
from pathlib import Path

import fork_server

ROOT = Path(__file__).parents[2]


def test_the_test_of_a_loss_in_the_docs_passes(tmp_path: Path):
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/customise.md").read_text(), flags=re.DOTALL)
        if "assert_layout_invariant" in block
    )
    (loss,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
        if "def focal" in block
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # or pytest looks for its settings in the folders above
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "losses.py").write_text(loss)
    (tmp_path / "my_lab" / "test_losses.py").write_text(code)
    ended = fork_server.run(["-m", "pytest", "-q", "my_lab"], cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout
