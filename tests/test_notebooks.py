"""The notebooks run from top to bottom, and what they keep is what they say."""

import itertools
import pathlib
import re

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow  # it starts processes, or takes long

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(cell):
    """What a cell printed or showed as text, without its numbers, which differ between runs."""
    shown = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return [re.sub(r"[-\d.,e+]+", "0", line).split() for line in "".join(shown).splitlines()]


def kinds_of(cell):
    """What a cell gave, in order; text that came in several pieces is one."""
    return [kind for kind, _ in itertools.groupby(output.output_type for output in cell.outputs)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_last_cell_proves_the_answer(path, monkeypatch):
    # Threads of PyTorch that wait for one another by spinning take the cores from the tests beside this one.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kept, run = read(path), read(path)
    nbclient.NotebookClient(run, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
    proof = code_of(run)[-1]
    assert "assert" in proof.source
    assert texts_of(proof)[-1] == texts_of(code_of(kept)[-1])[-1]
    for before, after in zip(code_of(kept), code_of(run), strict=True):
        assert kinds_of(before) == kinds_of(after)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_its_question_and_keeps_its_outputs(path):
    notebook = read(path)
    opening = notebook.cells[0].source
    assert opening.startswith("# ")
    assert "**Question.**" in opening
    assert "**Answer.**" in opening
    assert [cell.execution_count for cell in code_of(notebook)] == list(range(1, len(code_of(notebook)) + 1))
    for output in [output for cell in code_of(notebook) for output in cell.outputs]:
        assert output.get("name") != "stderr", output
        assert output.output_type != "error", output
        assert not re.search(r"/(home|root|work|tmp|Users)/", str(output.get("text", ""))), output
