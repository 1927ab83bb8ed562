"""Translation of PyTorch errors that a setting can resolve into errors that name the setting."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from nanolm.errors import SettingsError

# Names of the exceptions that torch.compile raises where it cannot generate code, and the reason.
NO_COMPILER = {
    "InvalidCxxCompiler": "finds no working C++ compiler",
    "TritonMissing": "needs Triton, which is not installed",
    "GPUTooOldForTriton": "needs a GPU of compute capability 7.0 or higher",
}


@contextlib.contextmanager
def translate_torch_errors() -> Iterator[None]:
    """Translate errors about operations without a deterministic implementation and about missing compilers.

    Raises:
        SettingsError: naming the operation or what is missing, and the setting that does without it.
    """
    try:
        yield
    except RuntimeError as error:
        if found := re.match(r"(\S+) does not have a deterministic implementation", str(error)):
            raise SettingsError(
                f"{found[1]} has no deterministic implementation on this device",
                where="trainer.deterministic",
                hint="use trainer.deterministic=false; the run is then not reproducible bit for bit",
            ) from error
        cause: BaseException | None = error
        while cause is not None:
            if reason := NO_COMPILER.get(type(cause).__name__):
                raise SettingsError(
                    f"torch.compile {reason}",
                    where="trainer.compile, trainer.attention_backend",
                    hint="use trainer.compile=false and a trainer.attention_backend other than flex",
                ) from error
            cause = cause.__cause__ or cause.__context__
        raise
