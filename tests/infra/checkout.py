"""A miniature checkout: the real `infra/` beside stand-ins for the four commands that it runs.

The stand-ins answer over HTTP as Ray, MLflow and the sampler do, start within milliseconds and, like Ray's workers,
leave the session they were started in.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "ab" * 32
PNG = b"\x89PNG\r\n\x1a\n..."
SUMMARY: dict[str, Any] = {
    "frechet_classifier": 7.25,
    "frechet_classifier_heldout": 9.5,
    "frechet_classifier_gaussian": 166.0,
    "frechet_classifier_noise": 1140.0,
    "vlb_bpd": 3.5,
    "vlb_prior_bpd": 0.5,
    "vlb_diffusion_bpd": 2.0,
    "vlb_reconstruction_bpd": 1.0,
    "images_per_second": 1234.5,
    "model_uri": "models:/digits@champion",
    "registered_model": "digits",
    "alias": "champion",
    "package_sha256": PACKAGE,
}

STAND_IN = """
import http.server, os, sys, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("X-Package-SHA256", PACKAGE)
        self.end_headers()
        self.wfile.write(BODY)
    do_GET = do_POST = answer
    def log_message(self, *_):
        pass

def serve_elsewhere(ports):
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler) for port in ports]  # listen already
    pid = os.fork()
    if pid == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        for server in servers:
            threading.Thread(target=server.serve_forever).start()
        threading.Event().wait()
    for server in servers:
        server.socket.close()
    return pid

def fail_if_told(name):
    if os.environ.get("BROKEN") == name:
        sys.exit(f"{name} cannot start")
"""
SERVICE = """
import os, sys
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from stand_in import fail_if_told, serve_elsewhere
fail_if_told(os.path.basename(__file__))
options = dict(word[2:].split("=", 1) for word in sys.argv if "=" in word)
names = ("port", ) if "host" in options else ("dashboard-port", "dashboard-agent-listen-port")
os.waitpid(serve_elsewhere([options[name] for name in names]), 0)
"""
TRAINER = """
import json, os, pathlib, sys, time
results = pathlib.Path(os.environ["DUALVIEW_STORAGE"], "digits/digits-1/results")
if "seed=bad" in sys.argv:
    print("error: seed = 'bad': allowed: an integer", file=sys.stderr)
    sys.exit(2)
if "--dry-run" in sys.argv:
    state = "done" if (results / "summary.json").exists() else "new"
    print(json.dumps({"run": {"name": "digits-1", "directory": str(results.parent), "state": state}}))
    sys.exit(0)
print("training with", sys.argv[3:], "on", os.environ["RAY_ADDRESS"], os.environ["MLFLOW_TRACKING_URI"], flush=True)
if "preempt=true" in sys.argv:
    sys.exit(75)
if "wait=true" in sys.argv:
    time.sleep(600)
results.mkdir(parents=True, exist_ok=True)
(results / "report.html").write_text("<!doctype html>")
(results / "samples.npy").write_bytes(b"samples")
(results / "summary.json").write_text(json.dumps(SUMMARY))
"""
SAMPLER = """
import sys
from stand_in import fail_if_told, serve_elsewhere
fail_if_told("sampler")
try:
    serve_elsewhere([sys.argv[sys.argv.index("--port") + 1]])
except OSError:  # the one of a kept stack serves there
    pass
"""


@dataclass(frozen=True)
class Checkout:
    """The miniature checkout."""

    root: Path

    @property
    def var(self) -> Path:
        return self.root / "var"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Starts `python -m infra.local ARGUMENTS`."""
        return subprocess.Popen(
            [self.root / "bin" / "python", "-m", "infra.local", *arguments],
            cwd=self.root,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def local(self, *arguments: str, expect: int = 0, **environment: str) -> str:
        """Runs `python -m infra.local ARGUMENTS`; its output, once its exit code is as expected."""
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == expect, output
        return output

    def run(self, *arguments: str, expect: int = 0, **environment: str) -> str:
        """Runs the main job."""
        return self.local("run", "--config", "digits.yaml", *arguments, expect=expect, **environment)

    def record(self) -> dict[str, Any]:
        """The contents of `var/stack.json`."""
        return json.loads((self.var / "stack.json").read_text())


def make_checkout(root: Path, package: str = PACKAGE, body: bytes = PNG) -> Checkout:
    """A miniature checkout whose sampler answers with `body`, drawn by `package`."""
    shutil.copytree(ROOT / "infra", root / "infra", ignore=shutil.ignore_patterns("__pycache__"))
    python = root / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(Path(sys.executable).resolve())
    (root / "stand_in.py").write_text(f"PACKAGE, BODY = {package!r}, {body!r}\n{STAND_IN}")
    for name in ("ray", "mlflow"):
        script = python.with_name(name)
        script.write_text(f"#!{python}\n{SERVICE}")
        script.chmod(0o755)
    for name, text in {"trainer": f"SUMMARY = {SUMMARY!r}\n{TRAINER}", "sampler": SAMPLER}.items():
        (root / name).mkdir()
        (root / name / "__main__.py").write_text(text)
    (root / "trainer" / "tracking").mkdir()
    (root / "trainer" / "tracking" / "database.py").touch()  # makes MLflow's database before its server starts
    return Checkout(root)
