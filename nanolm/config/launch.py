"""Launch options: how a run is started. They are not part of the experiment and are never saved with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nanolm.config.fields import setting
from nanolm.files import user_path

# Values of `resume` that name no run.
NEVER, AUTO = "never", "auto"
# Values of `fork` that name no run, as OmegaConf spells booleans.
BOOLEANS = ("true", "false", "yes", "no", "on", "off", "y", "n", "1", "0")


@dataclasses.dataclass
class Launch:
    """The launch options of a command line, with the same syntax as settings: option=value."""

    resume: str = setting(
        NEVER,
        doc="never, auto (resume the latest unfinished run with these settings, or start a new run) or the directory "
        "of a run to resume.",
        is_path=True,
    )
    fork: bool = setting(
        False,
        doc="The directory of a run, or one of its checkpoints: start a new run from it. true: from the one that "
        "`resume` names.",
        is_path=True,
    )
    dry_run: bool = setting(False, doc="Estimate time and memory from a few steps, print them and write nothing.")
    profile: bool = setting(False, doc="Trace a few steps with PyTorch's profiler into profile.json.")

    @property
    def resumed_path(self) -> Path | None:
        """The run or the checkpoint that `resume` names; None for never and auto."""
        return None if self.resume in (NEVER, AUTO) else user_path(self.resume)


# Other names that the command line accepts.
ALIASES = {"trainer.dry_run": "dry_run", "trainer.profile": "profile"}

LAUNCH_KEYS = (*(field.name for field in dataclasses.fields(Launch)), *ALIASES)
