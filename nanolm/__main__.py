"""`python -m nanolm` is `nanolm`."""

from nanolm.cli import main

main()
