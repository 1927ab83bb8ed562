import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from nanolm.config.fields import BOUNDS, Role, Trait, flat, setting_of
from nanolm.config.identity import identity
from nanolm.config.launch import Launch
from nanolm.config.model import LoraConfig, NgramMixConfig
from nanolm.config.optimizer import LrMultipliers
from nanolm.config.roles import affects_results, has_trait, is_resumable, role_of
from nanolm.config.run import SINGLE_SCHEMAS, Config
from nanolm.registry import GROUPS
from tests.helpers import make_config

SCHEMAS: list[tuple[str, type[Any]]] = [
    ("", Config),
    *((f"{group}.", schema) for group, schema in SINGLE_SCHEMAS.items()),
    *((f"{group}.", s) for group, registry in GROUPS.items() for s in (registry.base, *registry.schemas.values())),
    ("optimizer.lr_multipliers.", LrMultipliers),
    ("model.lora.", LoraConfig),
    ("model.ngram_mix.", NgramMixConfig),
    ("", Launch),
]


def declared() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every setting of every built-in schema but `name`, by its key."""
    for prefix, schema in SCHEMAS:
        for field in dataclasses.fields(schema):
            if field.name != "name":
                yield f"{prefix}{field.name}", field


def test_schemas_cover_every_option() -> None:
    keys = {key for key, _ in declared()}
    assert {key for key in flat(make_config()) if not key.endswith(".name")} <= keys
    assert len(keys) > 100


def test_every_setting_is_documented() -> None:
    for key, field in declared():
        assert "setting" in field.metadata, key
        doc = setting_of(field).doc
        assert doc.endswith("."), key
        assert "None" not in str(field.type) or "null" in doc, key


def test_every_number_has_bounds() -> None:
    for key, field in declared():
        is_number = str(field.type).split(" |")[0] in ("int", "float")
        bounds = setting_of(field).bounds
        assert bool(bounds) == is_number, key
        assert set(bounds) <= set(BOUNDS), key


def test_role_of_a_key_is_the_same_in_all_options() -> None:
    found: dict[str, set[Any]] = {}
    for key, field in declared():
        facts = setting_of(field)
        found.setdefault(key, set()).add((facts.role, facts.traits))
    assert [key for key, facts in found.items() if len(facts) > 1] == []


def test_rounding_is_a_trait_of_runtime_settings() -> None:
    for key, field in declared():
        assert Trait.rounding not in setting_of(field).traits or role_of(key) is Role.runtime, key


@pytest.mark.parametrize(
    ("key", "affects", "resumable"),
    [
        ("optimizer.lr", True, False),
        ("optimizer.lr_multipliers.head", True, False),
        ("trainer.precision", True, False),
        ("trainer.max_steps", True, True),
        ("trainer.eval_every", True, True),
        ("trainer.device", True, True),
        ("trainer.log_every", False, True),
        ("trainer.save_every", False, True),
        ("dataset.path", False, True),
        ("dataset.name", True, False),
        ("tokenizer.path", True, False),
        ("seed", True, False),
        ("plugins", False, True),
        ("logger.mode", False, True),
        ("logger.unknown", False, True),
        ("optimizer.unknown", True, False),
        ("unknown", True, False),
    ],
)
def test_roles_decide_what_may_change(key: str, affects: bool, resumable: bool) -> None:
    assert affects_results(key) is affects
    assert is_resumable(key, "cosine") is resumable


def test_plateau_schedule_fixes_eval_every() -> None:
    assert is_resumable("trainer.eval_every", "cosine")
    assert not is_resumable("trainer.eval_every", "plateau")


def test_group_traits_apply_to_its_settings() -> None:
    keys = ("size", "size.n_layers", "trainer.batch_size", "trainer.gradient_accumulation", "seed", "model.bias")
    assert [has_trait(key, Trait.scale) for key in keys] == [True, True, True, True, True, False]
    assert has_trait("tokenizer.vocab_size", Trait.loss_unit)
    assert has_trait("model.bias", Trait.evaluation)
    assert has_trait("trainer.sampling", Trait.evaluation)
    assert not has_trait("trainer.batch_size", Trait.evaluation)
    assert not has_trait("model.name", Trait.loss_unit)


def test_settings_without_effect_keep_the_identity() -> None:
    config = make_config("dataset=text", "dataset.path=a.txt")
    before = identity(config)
    config.dataset.path = "b.txt"
    config.trainer.keep_last, config.trainer.log_every, config.trainer.save_every_minutes = 5, 3, 1.5
    assert identity(config) == before
    config.trainer.batch_size += 1
    assert identity(config) != before


def test_roles_import_neither_torch_nor_omegaconf() -> None:
    code = "import sys, nanolm.config.roles; print({'omegaconf', 'torch', 'yaml'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
