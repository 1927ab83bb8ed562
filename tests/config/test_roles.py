import subprocess
import sys

import pytest

from nanolm.config.fields import flat
from nanolm.config.identity import identity
from nanolm.config.roles import QUIET, is_quiet
from tests.helpers import make_config


def test_each_is_a_setting_that_decides_no_number() -> None:
    config = make_config("dataset=text", "dataset.path=a.txt")
    assert set(flat(config)) >= QUIET
    before = identity(config)
    config.dataset.path = "b.txt"
    config.trainer.keep_last, config.trainer.log_every, config.trainer.save_every_minutes = 5, 3, 1.5
    assert identity(config) == before
    config.trainer.batch_size += 1
    assert identity(config) != before


@pytest.mark.parametrize(("key", "is_so"), [("logger.mode", True), ("trainer.profile", True), ("seed", False)])
def test_a_logger_is_quiet_whatever_is_set_of_it(key: str, is_so: bool) -> None:
    assert is_quiet(key) is is_so


def test_no_package_is_imported_for_it() -> None:
    code = "import sys, nanolm.config.roles; print({'omegaconf', 'torch', 'yaml'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
