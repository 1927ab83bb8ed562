"""The settings that may differ without making another experiment. No package is imported: runs are compared without."""

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
        "trainer.keep_last",
        "trainer.keep_every",
        "trainer.log_every",
        "trainer.log_norms",
        "trainer.peak_flops",
        "trainer.profile",
        "trainer.rank_timeout",
        "trainer.sample_tokens",
        "trainer.save_every",
        "trainer.save_in_background",
        "trainer.save_every_minutes",
    }
)

# What may differ between a run and its continuation besides what changes no number: how it is computed, how long, and
# when it is looked at. The text must be the same bytes.
MAY_CHANGE = frozenset(
    {
        "trainer.gradient_accumulation",
        "trainer.attention_backend",
        "trainer.compile",
        "trainer.deterministic",
        "trainer.device",
        "trainer.eval_every",
        "trainer.max_steps",
        "trainer.parallel",
    }
)


def is_quiet(key: str) -> bool:
    """Whether a setting changes none of a run's numbers."""
    return key in QUIET or key.split(".")[0] == "logger"
