"""The notebook runs from its first cell to its last."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "reviews.ipynb"


def test_it_runs_and_predicts(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs" / "notebook" / "model" / "config.json").exists()
    told = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "trained 120 steps" in told
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]["outputs"][-1]["data"]["text/plain"]
    assert "positive" in last or "negative" in last


def test_it_is_kept_without_the_outputs_of_whoever_ran_it_last():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
