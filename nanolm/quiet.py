"""The settings that change none of a run's numbers. No package is imported for it: runs are compared without any."""

from __future__ import annotations

# Files may lie elsewhere: a text's fingerprint tells texts apart.
QUIET = frozenset(
    {
        "dataset.nul",
        "dataset.path",
        "dataset.test_path",
        "dataset.val_path",
        "plugins",
        "resume",
        "trainer.dry_run",
        "trainer.keep",
        "trainer.keep_every",
        "trainer.log_every",
        "trainer.log_norms",
        "trainer.peak_flops",
        "trainer.profile",
        "trainer.rank_timeout",
        "trainer.sample_tokens",
        "trainer.save_every",
        "trainer.save_in_background",
        "trainer.save_minutes",
    }
)


def is_quiet(key: str) -> bool:
    """Whether a setting changes none of a run's numbers."""
    return key in QUIET or key.split(".")[0] == "logger"
