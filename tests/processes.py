"""Two real processes that train together, as torchrun starts them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = """
import json, sys
from mmrlhf import cli
for words in json.loads(sys.argv[1]):
    sys.argv = ["mmrlhf", *words]
    cli.main()
"""


def launch(runs: Sequence[Sequence[str]], folder: Path) -> subprocess.Popen[str]:
    """Two processes that make one run of the command line after another; `folder` is for the script."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen(
        [*command, json.dumps(runs)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(launched: subprocess.Popen[str], runs: int) -> None:
    """Wait for the end, which must be that of so many runs."""
    said, complaints = launched.communicate(timeout=240)
    assert launched.returncode == 0, complaints[-3000:]
    assert said.count("the weights to load are in") == runs
