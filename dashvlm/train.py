"""Fit one configuration, or a sweep with ``-m``: ``python -m dashvlm.train key=value ...``."""

import sys

if __name__ == "__main__":
    from dashvlm.safety import signals

    def main() -> int:
        """Run the verb."""
        from dashvlm.sweep import launch

        return launch(sys.argv[1:])

    sys.exit(signals.run(main))
