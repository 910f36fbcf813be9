"""A worker does not outlive its front end."""

from __future__ import annotations

import subprocess
import sys

from wise.vllm.front_end_watch import end_with, this_process

WORKER = """
import sys
from wise.vllm.front_end_watch import end_with
end_with((sys.argv[1], int(sys.argv[2])))
print("watches", flush=True)
sys.stdin.read()
"""


def test_a_worker_ends_with_its_front_end() -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    host = this_process()[0]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE) as front_end,
        subprocess.Popen(
            [sys.executable, "-c", WORKER, host, str(front_end.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as worker,
        subprocess.Popen(
            [sys.executable, "-c", WORKER, "another-host", str(front_end.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as second,
    ):
        for each in (worker, second):
            assert each.stdout is not None and each.stdout.readline() == b"watches\n"
        assert worker.poll() is None
        front_end.kill()
        assert worker.wait(180) == 1
        assert second.poll() is None
    assert second.returncode == 0
    end_with(this_process())  # it does not wait for itself
