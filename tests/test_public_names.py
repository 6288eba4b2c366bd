"""What the README imports is there, from the top of the package."""

import re
from copy import copy
from importlib.metadata import version
from pathlib import Path

import torch

import metaalign_hf

README = Path(__file__).parents[1] / "README.md"


def test_every_public_name_can_be_imported():
    for name in metaalign_hf.__all__:
        assert getattr(metaalign_hf, name) is not None, name
    assert metaalign_hf.__version__ == version("metaalign-hf")
    assert Path(metaalign_hf.__file__).with_name("py.typed").exists()


def test_the_objective_of_the_readme_runs(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "@register_alignment" in block]
    from metaalign_hf.alignment import AlignmentBatch, build_alignment, registry

    # Other tests look at every objective of the package: this one is known here only.
    monkeypatch.setattr(registry, "_OBJECTIVES", copy(registry._OBJECTIVES))
    exec(block, {"__name__": "readme"})
    found = build_alignment("mean_distance", 4, 3)
    batch = AlignmentBatch(torch.eye(4), torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]))
    assert float(found(batch).loss) == 1.0
