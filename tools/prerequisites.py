"""Say what is missing before anything is installed, with the command that installs it. Runs on any Python 3."""

import importlib.util
import shutil
import sys


def missing() -> "list[str]":
    found = []
    if sys.version_info < (3, 11):
        found.append("Python 3.11 or newer (this is %d.%d; set PYTHON=)" % sys.version_info[:2])
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        found.append("venv with pip: apt install python3-venv")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        found.append("a C++20 compiler: apt install g++")
    return found


if __name__ == "__main__":
    lines = missing()
    for line in lines:
        print("missing: " + line, file=sys.stderr)
    sys.exit(1 if lines else 0)
