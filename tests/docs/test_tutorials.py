"""The tutorials run from the first cell to the last, at a small size, with the expected outcome."""

import os

import pytest

nbformat = pytest.importorskip("nbformat", reason="`make docs` installs what runs notebooks")
nbclient = pytest.importorskip("nbclient", reason="`make docs` installs what runs notebooks")
pytest.importorskip("ipykernel", reason="`make docs` installs what runs notebooks")

# What replaces the cell tagged "parameters", and what must hold after the last cell.
SMALL = {
    "operators": ("STEPS = 600", "assert recall > 0.85 and precision > 0.4"),
    "own_data": (
        "NUM_TRAIN, NUM_VAL, ITERATIONS = 40, 12, 24",
        "assert lines[-1]['total_loss'] < lines[0]['total_loss'] and len(detections) == 12",
    ),
    "own_method": (
        "NUM_TRAIN, NUM_VAL, ITERATIONS = 40, 10, 20",
        "assert done.returncode == 0 and len(os.listdir('drawn')) == 12, done.stderr",
    ),
}


def read(repository, name):
    return nbformat.read(repository / f"docs/tutorials/{name}.ipynb", as_version=4)


def test_every_tutorial_is_run(repository):
    assert {p.stem for p in (repository / "docs/tutorials").glob("*.ipynb")} == set(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_tutorial_runs(repository, tmp_path, name):
    notebook = read(repository, name)
    parameters, conclusion = (nbformat.v4.new_code_cell(text) for text in SMALL[name])
    tagged = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ())]
    assert len(tagged) == 1
    notebook.cells.insert(tagged[0] + 1, parameters)
    notebook.cells.append(conclusion)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    # An empty folder and a user's environment: the package, but nothing of the repository.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    client.execute(env=environment)


@pytest.mark.parametrize("name", SMALL)
def test_stored_outputs_are_from_one_complete_run_and_small(repository, name):
    """The pages show the stored outputs: run all cells, in order, before a commit."""
    notebook = read(repository, name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    text = (repository / f"docs/tutorials/{name}.ipynb").read_text()
    assert len(text) < 500_000
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr"
            shown = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            assert not any(
                folder in shown for folder in ("/tmp", "/root", "/home", "site-packages")
            )
