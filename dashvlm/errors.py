"""The errors a user can cause. A message says what is wrong, what was got and what to do."""

from __future__ import annotations

import errno
from pathlib import Path


class DashVLMError(Exception):
    """Base of all errors that the user, not the developer, can mend.

    Args:
        what: what is wrong, naming the thing (a key, a clip, a file).
        got: the value or state that was found.
        do: the next step for the user.
    """

    def __init__(self, what: str, got: str = "", do: str = "") -> None:
        self.what, self.got, self.do = what, got, do
        lines = [what] + [f"  got: {got}"] * bool(got) + [f"  do:  {do}"] * bool(do)
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[DashVLMError], tuple[str, str, str]]:
        # The default would call __init__ with the joined message only.
        return type(self), (self.what, self.got, self.do)


class ConfigError(DashVLMError):
    """The configuration is wrong; nothing was started."""


class DataError(DashVLMError):
    """A dataset is missing, malformed or cannot be used as asked."""


class VideoError(DataError):
    """One video cannot be read; the caller decides between quarantine and failure."""


class CheckpointError(DashVLMError):
    """A checkpoint is missing, foreign, incomplete or unsafe."""


class OutOfMemory(DashVLMError):
    """The run does not fit into memory; the message names what would."""


class TrainingError(DashVLMError):
    """Training cannot go on, for example because the loss is not finite."""


class TeacherError(DashVLMError):
    """A teacher behind an endpoint will not answer; what was paid for is kept."""


UNUSABLE = (errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR,
            errno.EEXIST, errno.ENAMETOOLONG)  # fmt: skip
"""Errors of the file system that a user can mend."""


def unusable(error: OSError, folder: Path | None = None) -> DataError:
    """Such an error in our form.

    Args:
        error: from the file system.
        folder: where it was about to write, for errors that name no file.
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    place = error.filename2 or error.filename or folder
    return DataError(
        f"{place or 'a file'} cannot be {'written' if full else 'used'}", got=str(error.strerror),
        do=f"make room there (df -h {folder or '.'}) and run the same command again, or give another folder "
        "(paths.output_dir=FOLDER, paths.cache_dir=FOLDER)" if full else
        "give another folder (paths.output_dir=FOLDER, paths.cache_dir=FOLDER), or get the rights to write there",
    )  # fmt: skip
