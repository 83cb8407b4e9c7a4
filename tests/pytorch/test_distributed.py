"""Two processes train as one does: `fully_shard` (FSDP2) and DDP, over gloo on the CPU."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("on_two_processes.py")


RUNS = [
    "fully_shard_tied_and_projected",
    "fully_shard_rotary",
    "fully_shard_from_files",
    "fully_shard_one_stack_for_both",
    "fully_shard_in_bfloat16",
    "data_parallel",
]


def test_two_processes_train_as_one(tmp_path):
    """What is asserted stands in `on_two_processes.py`; all in one run, since to start takes the most time."""
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [text.splitlines() for text, _ in said] == [RUNS, RUNS], "\n".join(errors for _, errors in said)
