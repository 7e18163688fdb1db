"""`python -m tests.integration.preempted DIRECTORY ARGUMENT…`: the trainer, preempted after its first checkpoint.

Stands for a scheduler that takes the machines away: the first time, the trainer gets SIGTERM once the run in DIRECTORY
has a checkpoint. From then on it is the trainer and nothing else. The exit code is always the trainer's own.
"""

import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    directory, arguments = Path(sys.argv[1]), sys.argv[2:]
    seen_before = any(directory.glob("checkpoints/step-*/manifest.json"))
    trainer = subprocess.Popen([sys.executable, "-m", "trainer", *arguments])
    while not seen_before and trainer.poll() is None:
        if any(directory.glob("checkpoints/step-*/manifest.json")):
            trainer.terminate()
            break
        time.sleep(0.01)
    return trainer.wait()


if __name__ == "__main__":
    sys.exit(main())
