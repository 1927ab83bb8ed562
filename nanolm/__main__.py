"""Run the nanolm command by `python -m nanolm`."""

import os
import sys

# `python -m` puts the current folder first on sys.path, where a local numpy.py would hide the installed module.
# os.path instead of pathlib: the folder may have been deleted, and pathlib imports more.
if __name__ == "__main__" and (
    not os.path.exists(sys.path[0]) or os.path.samefile(sys.path[0], ".")  # noqa: PTH110, PTH121
):
    sys.path.append(sys.path.pop(0))

from nanolm.cli.main import main

main()
