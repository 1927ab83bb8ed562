"""Training: the loop, its steps, optimizers and checkpoints.

The package can be called: `for step in nanolm.training("model=gpt", max_steps=500)` trains step by step, as
nanolm.api.training describes.
"""

from nanolm.callable_packages import make_callable

make_callable(__name__, "nanolm.api.training")
