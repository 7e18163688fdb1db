"""A program that is none of DualView's and follows the queue's contract: steps, checkpoints, heartbeats, exit 75.

    python heartbeats.py FILE STEPS [GATE]

It counts in FILE, which is its checkpoint and is not written before there is a file GATE, five steps a second.
"""

import json
import os
import signal
import sys
import time
import urllib.request
from pathlib import Path


def main() -> int:
    """Count; 75 if the queue wants the machine back before the end."""
    file, steps, gates = Path(sys.argv[1]), int(sys.argv[2]), [Path(each) for each in sys.argv[3:]]
    step = saved = int(file.read_text()) if file.exists() else 0
    print(f"begins after {step}", flush=True)
    while step < steps:
        time.sleep(0.2)
        step += 1
        if step % 5 == 0 and heartbeat(step, steps, saved):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it leaves already
            print("saves", flush=True)
            while not all(gate.exists() for gate in gates):
                time.sleep(0.1)
            file.write_text(str(step))
            print(f"leaves after {step}", flush=True)
            return 75
    file.write_text(str(step))
    return 0


def heartbeat(step: int, steps: int, saved: int) -> bool:
    """Whether the queue wants the machine back."""
    file = os.environ["DUALVIEW_QUEUE_TOKEN_FILE"]
    token, url = Path(file).read_text(), Path(f"{file}.url").read_text()
    body = json.dumps({"step": step, "steps": steps, "saved_step": saved, "doing": "counting"}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return json.loads(reply.read())["preempt"] is True
    except OSError:  # an unreachable queue stops nothing
        return False


if __name__ == "__main__":
    sys.exit(main())
