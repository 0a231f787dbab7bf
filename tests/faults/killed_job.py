"""A job that dies by SIGKILL inside the n-th write of a checkpoint: ``python killed_job.py FOLDER WRITE PLACE``.

PLACE is where in the write: a share of the bytes of ``torch.save``, or the name of what comes after them.
"""

import os
import signal
import sys
from pathlib import Path

from dashvlm.training import checkpoints

folder, write, place = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
writes = [0]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """A file that kills its process after so many bytes."""

    def __init__(self, file, size):
        self.file, self.left = file, size

    def write(self, data):
        if self.left <= len(data):
            self.file.write(bytes(data)[: self.left])
            self.file.flush()
            die()
        self.left -= len(data)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


save, seal, sync, replace = checkpoints.torch.save, checkpoints._seal, checkpoints._sync, Path.replace


def counted(state, file):
    writes[0] += 1
    if writes[0] == write and place[0].isdigit():
        size = sum(v.numel() * v.element_size() for v in state["state_dict"].values())
        return save(state, Dying(file, int(float(place) * size)))
    return save(state, file)


def at(name, function):
    def call(*words):
        if writes[0] == write and place == f"before {name}":
            die()
        done = function(*words)
        if writes[0] == write and place == f"after {name}":
            die()
        return done

    return call


checkpoints.torch.save, checkpoints._seal, checkpoints._sync = counted, at("seal", seal), at("sync", sync)
Path.replace = at("rename", replace)
checkpoints.os.fsync = at("fsync", os.fsync)

if __name__ == "__main__":
    from dashvlm.engine.job import main

    sys.exit(main(folder))
