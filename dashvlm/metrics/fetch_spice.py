"""Fetch the jars that SPICE needs: ``python -m dashvlm.metrics.fetch_spice [--source FOLDER] [--target FOLDER]``.

CoreNLP 3.6.0 and its models (GPL) are in no Python package; Nashorn takes the place of the JavaScript engine
that Java dropped in version 15. Each file is compared with the SHA-1 that Maven Central publishes beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

from dashvlm.metrics.java import spice_folder, spice_problem

CENTRAL = "https://repo1.maven.org/maven2"
JARS = {
    "stanford-corenlp-3.6.0.jar": "edu/stanford/nlp/stanford-corenlp/3.6.0",
    "stanford-corenlp-3.6.0-models.jar": "edu/stanford/nlp/stanford-corenlp/3.6.0",
    "nashorn-core-15.4.jar": "org/openjdk/nashorn/nashorn-core/15.4",
    **{
        f"{name}-7.3.1.jar": f"org/ow2/asm/{name}/7.3.1"
        for name in ("asm", "asm-commons", "asm-tree", "asm-util", "asm-analysis")
    },
}


def fetch(target: Path, source: Path | None = None, central: str = CENTRAL) -> list[str]:
    """Copy the jars from a folder, or download them; files that are there already stay.

    Args:
        target: where they go.
        source: folder with the jars, or None for Maven Central.
        central: address of the repository.

    Returns:
        What could not be had, with the reason.
    """
    target.mkdir(parents=True, exist_ok=True)
    problems = []
    for name, place in JARS.items():
        if (target / name).is_file():
            continue
        try:
            if source is not None:
                shutil.copyfile(source / name, target / name)
            else:
                _download(f"{central}/{place}/{name}", target / name)
            print(f"{name}: here", flush=True)
        except (OSError, urllib.error.URLError, ValueError) as error:
            problems.append(f"{name}: {error}")
    return problems


def _download(address: str, path: Path) -> None:
    with urllib.request.urlopen(f"{address}.sha1", timeout=60) as reply:
        wanted = reply.read().decode().split()[0].lower()
    partial, digest = path.with_suffix(".part"), hashlib.sha1(usedforsecurity=False)
    with urllib.request.urlopen(address, timeout=60) as reply, partial.open("wb") as file:
        while block := reply.read(1 << 20):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != wanted:
        partial.unlink()
        raise ValueError(f"checksum {digest.hexdigest()} instead of {wanted}")
    partial.replace(path)


def main(argv: list[str]) -> int:
    """Fetch, then say whether SPICE can run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, help="folder with the jars, instead of Maven Central")
    parser.add_argument("--target", type=Path, default=spice_folder())
    asked = parser.parse_args(argv)
    for problem in fetch(asked.target, asked.source):
        print(f"not fetched: {problem}", file=sys.stderr)
    lacking = spice_problem(asked.target)
    print(f"SPICE: {'ready' if lacking is None else lacking}")
    return 0 if lacking is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
