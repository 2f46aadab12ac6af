"""The pages on Python, and the notebook: they run as they stand, block after block."""

import re
import warnings
from pathlib import Path

import nbclient
import nbformat
import pytest

import offnominal

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize(
    "page", ["python.md", pytest.param("python-results.md", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks:
            line = text.count("\n", 0, block.start(1))
            exec(compile("\n" * line + block[1], page, "exec"), names)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(offnominal.__file__).parents[1]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = DOCS / "notebook.ipynb"
    notebook = nbformat.read(file, as_version=4)
    kept = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=where).execute()
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    assert {one.output_type for one in outputs} == {"execute_result", "display_data"}
    # What is kept in the file is what comes out, but for times, and for one figure made smaller.
    assert [one.output_type for one in kept] == [one.output_type for one in outputs]
    pages = [one.data.get("text/html", "") for one in outputs]
    assert sum("<progress " in page for page in pages) == 2
    assert sum("REJECT" in page for page in pages) == 1
    assert any("image/png" in one.data for one in outputs)
    assert file.stat().st_size < 200_000
    assert (tmp_path / "part.offn").exists()
