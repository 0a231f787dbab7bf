"""The Java halves of pycocoevalcap: tokeniser, METEOR, SPICE. Probed first; nothing is downloaded or written there.

pycocoevalcap itself writes temporary files into its own folder, starts a tokeniser for each side, and
fetches SPICE's parser over plain http on first use. Here files go to a temporary folder, one tokeniser
serves both sides, one METEOR process serves all calls, and what is missing is said.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SPICE_JARS = "DASHVLM_SPICE_JARS"
"""Environment variable: folder with the jars that ``make spice`` fetches."""
CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# Dropped after tokenising, as pycocoevalcap does.
PUNCTUATION = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
# What Java or Python take for the end of a line: one of them inside a caption would shift all later ones.
_BREAKS = re.compile("[\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]+")


class Unavailable(Exception):
    """A metric cannot be computed here; the message says what is missing."""


def one_line(text: str) -> str:
    """Replace everything that ends a line, in any of the programs involved, by a space."""
    return _BREAKS.sub(" ", text)


@functools.cache
def java_version() -> int:
    """Return the major version of the ``java`` on the path.

    Raises:
        Unavailable: if there is none, or it does not start.
    """
    if shutil.which("java") is None:
        raise Unavailable("there is no java on the path (Java 8 or newer; Debian: apt install default-jre-headless)")
    done = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    if done.returncode or not found:
        raise Unavailable(f"java does not start: {(done.stderr or done.stdout).strip().splitlines()[:1]}")
    return int(found.group(1))


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Tokenise captions as the COCO caption metrics do, in one Java process.

    Stanford CoreNLP 3.4.1's PTBTokenizer, lower case, punctuation dropped.

    Raises:
        Unavailable: if Java is missing or fails.
    """
    java_version()
    jar = _package() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.txt"
        path.write_text("\n".join(one_line(t) for t in texts) + "\n", encoding="utf-8")
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer",
                   "-preserveLines", "-lowerCase", "-encoding", "UTF-8", str(path)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, check=False)
    lines = done.stdout.decode().split("\n")
    lines = lines[:-1] if lines and not lines[-1] else lines
    if done.returncode:
        raise Unavailable(f"the tokeniser failed: {done.stderr.decode(errors='replace')[-200:]}")
    if len(lines) != len(texts):
        raise AssertionError(f"the tokeniser gave {len(lines)} lines for {len(texts)} captions")
    return [" ".join(w for w in line.split(" ") if w and w not in PUNCTUATION) for line in lines]


def meteor(references: Sequence[str], texts: Sequence[str]) -> tuple[float, list[float]]:
    """METEOR 1.5 of tokenised texts: the corpus value of its last line, and a value a text.

    One process serves all calls of this Python process.

    Raises:
        Unavailable: if Java is missing, or the process dies.
    """
    java_version()
    gold, said = {i: [one_line(t)] for i, t in enumerate(references)}, {i: [one_line(t)] for i, t in enumerate(texts)}
    try:
        total, each = _meteor_process().compute_score(gold, said)
    except (OSError, ValueError) as error:
        _meteor_process.cache_clear()
        raise Unavailable(f"METEOR's process ended: {error} (it needs 2 GB of memory)") from error
    return float(total), [float(v) for v in each]


@functools.cache
def _meteor_process() -> Any:
    from pycocoevalcap.meteor.meteor import Meteor

    process = Meteor()
    atexit.register(process.meteor_p.kill)
    return process


def spice_problem(folder: Path | None = None) -> str | None:
    """Say what SPICE lacks here, or None."""
    try:
        version = java_version()
    except Unavailable as error:
        return str(error)
    folder = folder or spice_folder()
    lacking = [name for name in CORENLP if not (folder / name).is_file()]
    if lacking:
        return f"{', '.join(lacking)} not in {folder} (make spice fetches them; or set {SPICE_JARS})"
    if version >= 15 and not list(folder.glob("nashorn-core-*.jar")):
        return f"Java {version} has no JavaScript engine and nashorn-core is not in {folder} (make spice fetches it)"
    return None


def spice_folder() -> Path:
    """Where the jars for SPICE are looked for."""
    default = Path.home() / ".cache" / "dashvlm" / "spice"
    return Path(os.environ.get(SPICE_JARS) or default)


def spice(references: Sequence[str], texts: Sequence[str], memory: str = "4G") -> tuple[float, list[float]]:
    """SPICE (Anderson et al., ECCV 2016) of untokenised texts: mean F of all tuples, and a value a text.

    The program's cache is left out: it needs Java internals and changes no score.

    Raises:
        Unavailable: if anything is missing or the program fails.
    """
    problem = spice_problem()
    if problem:
        raise Unavailable(problem)
    package = _package() / "spice"
    # -jar would ignore the class path, and the manifest names the jars in a folder of the package.
    jars = [package / "spice-1.0.jar", *sorted((package / "lib").glob("*.jar")), *sorted(spice_folder().glob("*.jar"))]
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "in.json", Path(folder) / "out.json"
        items = [{"image_id": i, "test": one_line(t), "refs": [one_line(r)]}
                 for i, (r, t) in enumerate(zip(references, texts, strict=True))]  # fmt: skip
        given.write_text(json.dumps(items), encoding="utf-8")
        command = ["java", f"-Xmx{memory}", "-Dfile.encoding=UTF-8", "-cp", os.pathsep.join(map(str, jars)),
                   "edu.anu.spice.SpiceScorer", str(given), "-out", str(made), "-subset", "-silent"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, check=False, cwd=folder)
        if done.returncode or not made.exists() or not made.stat().st_size:
            raise Unavailable(f"SPICE failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
        results = json.loads(made.read_text(encoding="utf-8"))
    by_id = {int(r["image_id"]): float(r["scores"]["All"]["f"] or 0.0) for r in results}
    each = [by_id[i] if np.isfinite(by_id[i]) else 0.0 for i in range(len(texts))]
    return float(np.mean(each)), each


def _package() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("pycocoevalcap is not installed")
    return Path(next(iter(spec.submodule_search_locations)))
