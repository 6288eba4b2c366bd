"""The notebook and the job script do, with tiny steps, what they tell."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata

import nbformat
from nbclient import NotebookClient

from tests.helpers.runs import ROOT


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    book = nbformat.read(ROOT / "examples" / "adapt_your_folder.ipynb", as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") for cell in book.cells), "it is kept without outputs"
    (settings,) = [cell for cell in book.cells if cell.cell_type == "code" and cell.source.startswith("SOURCE, TARGET")]
    settings.source += "\nSOURCE_STEPS, STEPS, BATCH, SIZE = 1, 2, 4, 16"
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [str(output) for cell in book.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output for output in outputs), "the picture of target images is shown"
    assert any(re.search(r"target accuracy 0\.\d+ -> 0\.\d+", output) for output in outputs)
    assert "score" in outputs[-1] and (tmp_path / "runs" / "notebook" / "model.safetensors").is_file()


def test_the_job_script_says_what_it_needs_and_is_the_train_command():
    script = ROOT / "examples" / "hf_job.py"
    header = re.search(r"^# /// script\n((?:# .*\n)+)# ///$", script.read_text(), re.MULTILINE)
    assert header is not None
    needed = tomllib.loads("".join(line.removeprefix("# ") for line in header[1].splitlines(keepends=True)))
    assert needed["dependencies"] == [f"{metadata('metaalign-hf')['Name']}[demo]"]
    assert needed["requires-python"] == metadata("metaalign-hf")["Requires-Python"]
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--training.max_steps" in done.stdout, done.stdout + done.stderr
