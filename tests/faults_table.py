"""The table of ``make faults``: class, tried, held. ``python -m tests.faults_table FILE``."""

import json
import sys
from pathlib import Path

from dashvlm.report.tables import print_table


def main(path):
    """Print the sums of a file of counts; return 1 if anything did not hold, or nothing was tried."""
    sums = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        one = json.loads(line)
        tried, held = sums.get(one["class"], (0, 0))
        sums[one["class"]] = tried + one["tried"], held + one["held"]
    body = [[name, str(tried), str(held)] for name, (tried, held) in sorted(sums.items())]
    print_table("attacks and faults", ["class", "tried", "held"], body)
    return int(not sums or any(tried != held for tried, held in sums.values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
