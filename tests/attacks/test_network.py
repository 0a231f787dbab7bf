"""An offline training and its report ask nothing of the network: no connection, no look-up of a name."""

import os
import subprocess
import sys

from tests.conftest import ROOT, SMALL, Trials

GUARD = """
import os, sys
def _notice(event, words):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"):
        place = words[1] if event in ("socket.connect", "socket.sendto", "socket.bind") else words[0]
        if isinstance(place, (str, bytes)) and event in ("socket.connect", "socket.bind", "socket.sendto"):
            return  # a socket of this machine
        with open(os.environ["GUARD_FILE"], "a") as file:
            file.write(f"{event} {place} {' '.join(sys.argv)[:100]}\\n")
sys.addaudithook(_notice)
"""


def test_training_and_report_need_no_network(cache, tmp_path):
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    seen = tmp_path / "seen.txt"
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "WANDB_MODE")}
    environment |= {"PYTHONPATH": str(tmp_path / "guard"), "GUARD_FILE": str(seen)}
    place = [f"paths.output_dir={tmp_path / 'runs'}", f"paths.cache_dir={cache}"]

    def call(*words):
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]

    # The guard itself works, in a child of a child too.
    call("-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', "
         "'import socket\\ntry: socket.getaddrinfo(\"localhost\", 1)\\nexcept OSError: pass'])")  # fmt: skip
    assert "socket.getaddrinfo localhost" in seen.read_text()
    seen.unlink()
    with Trials("offline") as trials:
        call("-m", "dashvlm.train", *SMALL, "trainer.max_steps=1", "objective.max_new_tokens=4", "data.num_workers=1",
             *place)  # fmt: skip
        trials.check(not seen.exists(), seen.read_text() if seen.exists() else "")
        call("-m", "dashvlm.report", "html=true", *place)
        trials.check(not seen.exists(), seen.read_text() if seen.exists() else "")
