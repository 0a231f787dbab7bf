"""Puts conf/ and experiments/ into the wheel: an installed package finds them inside itself."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigurations(build_py):
    """The modules, and for a wheel the configurations and studies."""

    def run(self) -> None:
        """Copy them."""
        super().run()
        if not self.editable_mode:
            for name in ("conf", "experiments"):
                shutil.copytree(name, Path(self.build_lib) / "dashvlm" / name, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithConfigurations})
