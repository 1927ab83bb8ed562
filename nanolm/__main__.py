"""`python -m nanolm` is `nanolm`."""

import os
import sys

# `python -m` puts the current folder first, where a numpy.py or a random.py would hide the installed module.
if __name__ == "__main__" and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109 (pathlib imports more)
    sys.path.append(sys.path.pop(0))

from nanolm.cli import main

main()
