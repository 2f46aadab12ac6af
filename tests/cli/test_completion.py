"""The Tab key, as bash asks: its own function, and the command as it is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINES = {
    "offnominal cal": ["calibrate"],
    "offnominal fit --method patch": ["patch-svdd", "patchcore"],
    "offnominal fit --method patchcore --cores": ["--coreset"],
    "offnominal fit --backbone dinov2_vitb": ["dinov2_vitb14", "dinov2_vitb14_reg"],
    "offnominal predict m.offn new --save json,o": ["json,overlay"],
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.slow
def test_bash_completes(tmp_path: Path) -> None:
    command = tmp_path / "offnominal"
    command.write_text(
        f"#!{sys.executable}\nimport sys\nfrom offnominal.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'numpy', 'pydantic'} & sys.modules.keys()\n"
        "    assert sys.argv[1:] or not heavy, heavy\n"
    )
    command.chmod(0o755)
    asked = "".join(
        f"COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; COMPREPLY=()\n"
        '_offnominal_completion offnominal; echo "${COMPREPLY[*]}"\n'
        for line in LINES
    )
    # As the script has it that the command itself prints for bash, and installs.
    script = f'eval "$(offnominal --show-completion bash 2>/dev/null)"\n{asked}'
    source = str(Path(__file__).parents[2] / "src")
    own = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": source}
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=os.environ | own, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert [sorted(line.split()) for line in done.stdout.splitlines()] == list(LINES.values())
