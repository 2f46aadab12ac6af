"""A bank where PyTorch, OpenCV and SciPy are not installed: all to the same bits."""

import json

import torch
from tests.memory.light_bank import work
from tests.test_light_ground import script


def test_all_comes_out_the_same() -> None:
    assert torch.__version__  # so that this process searches with it
    code = """
from tests.memory.light_bank import work
print(json.dumps(work()))
"""
    done = script(code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == work()
