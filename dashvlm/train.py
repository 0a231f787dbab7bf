"""Fit one configuration, or a sweep with ``-m``: ``python -m dashvlm.train key=value ...``."""

import sys

if __name__ == "__main__":
    from dashvlm.sweep import launch

    sys.exit(launch(sys.argv[1:]))
