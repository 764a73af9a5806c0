"""What pyproject.toml can't say: a wheel has the tiny reasoner inside of the package, a checkout beside it."""

from pathlib import Path
from shutil import copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py


class WithAssets(build_py):
    """The package, and in it assets/."""

    def run(self) -> None:
        """Copy both; an editable install has them where they are."""
        super().run()
        if not self.editable_mode:
            inside = Path(self.build_lib, "tl_l2norm", "assets")
            copytree("assets", inside, dirs_exist_ok=True, ignore=ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": WithAssets})
