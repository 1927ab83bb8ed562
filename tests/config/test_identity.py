from nanolm.config.identity import identity
from nanolm.config.roles import is_resumable
from tests.helpers import make_config


def test_identity_ignores_only_settings_without_effect() -> None:
    config = make_config()
    assert identity(config) == identity(make_config("trainer.max_steps=9", "logger=none", "trainer.log_every=3"))
    for override in ("seed=2", "optimizer.lr=0.5", "dataset=tiny_shakespeare", "model.dropout=0.1"):
        assert identity(config) != identity(make_config(override)), override


def test_plateau_identity_includes_eval_every() -> None:
    plateau = make_config("scheduler=plateau")
    assert not is_resumable("trainer.eval_every", plateau.scheduler.name)
    assert identity(plateau) != identity(make_config("scheduler=plateau", "trainer.eval_every=3"))
