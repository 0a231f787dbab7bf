"""Fit one configuration, or a sweep with ``-m``, and print its table.

python -m dashvlm.train model=smolvlm2 task=crash -m data.num_frames=5,10,15
python -m dashvlm.train experiment=crash_demo
python -m dashvlm.train experiment=crash_demo debug=fast
"""

import sys

if __name__ == "__main__":
    from dashvlm.safety import signals

    def main() -> int:
        """Run the verb."""
        from dashvlm.sweep import launch

        return launch(sys.argv[1:])

    sys.exit(signals.run(main))
