"""`python -m nanolm` is `nanolm`."""

import os
import sys

# `python -m` puts the current folder first, where a numpy.py or a random.py would hide the installed module.
# The folder may have been deleted, so it is not asked for its path. (pathlib imports more.)
if __name__ == "__main__" and (
    not os.path.exists(sys.path[0]) or os.path.samefile(sys.path[0], ".")  # noqa: PTH110, PTH121
):
    sys.path.append(sys.path.pop(0))

from nanolm.cli.main import main

main()
