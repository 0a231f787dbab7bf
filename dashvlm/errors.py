"""The errors a user can cause. A message says what is wrong, what was got and what to do."""

from __future__ import annotations


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
