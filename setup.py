"""The compiled form, built where it is asked for; all else stands in pyproject.toml.

    pip install .                        pure Python: no compiler, no mypy
    SERVEWATT_COMPILE=1 pip install .    also `tool.servewatt.compiled`, as C by mypyc

A compiled module lies beside its source and is imported in its place.
"""

import os
import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

PROJECT = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())
MODULES: list[str] = PROJECT["tool"]["servewatt"]["compiled"]
ASKED = os.environ.get("SERVEWATT_COMPILE", "0")
HEADERS = Path(sysconfig.get_path("include"))


def refuse(reason: str) -> None:
    """One line, and no build."""
    sys.exit(f"SERVEWATT_COMPILE={ASKED}: {reason}")


def check_compiler() -> None:
    """What a compiled module is made with is here, or what to install."""
    if os.name != "posix":
        return  # setuptools finds the compiler of other systems, and says so
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    compiler = command.split()[0]
    if shutil.which(compiler) is None:
        refuse(f"no C compiler ({compiler}): install gcc, or leave it out")
    if not (HEADERS / "Python.h").exists():
        refuse(f"no Python.h in {HEADERS}: install python3-dev, or leave it out")


def compiled() -> list[Extension]:
    """The modules, translated to C."""
    check_compiler()
    try:
        from mypyc.build import mypycify
    except ImportError:
        needs = " ".join(PROJECT["project"]["optional-dependencies"]["compile"])
        refuse(f"mypyc is not here: pip install {needs}")
    paths = [f"{module.replace('.', '/')}.py" for module in MODULES]
    return list(mypycify(paths, opt_level="3", debug_level="0", group_name="servewatt"))


class CompiledDistribution(Distribution):
    """One for this interpreter and machine, before its modules are translated."""

    def has_ext_modules(self) -> bool:
        """True, so that the wheel is named by what it fits."""
        return True


class BuildCompiled(build_ext):
    """The extensions, from nothing: what an earlier build left is not taken along."""

    def finalize_options(self) -> None:
        """Translate once the build requirements are here."""
        if not self.distribution.ext_modules:
            self.distribution.ext_modules = compiled()
        super().finalize_options()

    def run(self) -> None:
        """Compile."""
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        for left in Path(self.build_lib).rglob(f"*{suffix}"):
            left.unlink()
        super().run()


def options() -> dict[str, Any]:
    """What setup() is told beside pyproject.toml."""
    if ASKED in ("", "0"):
        return {}
    if ASKED != "1":
        refuse("expected 1 or 0")
    if {"editable_wheel", "develop"} & set(sys.argv):
        refuse("an editable install would go on with old code: leave out -e")
    return {
        # types of the libraries are part of what is translated
        "setup_requires": [
            *PROJECT["project"]["optional-dependencies"]["compile"],
            *PROJECT["project"]["dependencies"],
        ],
        "distclass": CompiledDistribution,
        "cmdclass": {"build_ext": BuildCompiled},
    }


if __name__ == "__main__":
    setup(**options())
