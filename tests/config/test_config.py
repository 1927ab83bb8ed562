import dataclasses
import itertools
import math

import pytest

from nanolm.compose import compose_line, config_folder
from nanolm.config.checks import check
from nanolm.config.fields import outside_bounds, setting_of
from nanolm.config.identity import identity, may_change
from nanolm.config.mask import (
    BandedCausalConfig,
    BlockLocalConfig,
    CausalConfig,
    DocumentConfig,
    MaskConfig,
    StridedConfig,
    layer_masks,
    layers_by_mask,
    reads_documents,
)
from nanolm.config.optimizer import LrMultipliers
from nanolm.config.size import SizeConfig
from nanolm.config.trainer import TrainerConfig
from nanolm.registry import GROUPS
from tests.helpers import make_config

# What an option has no default for.
NEEDED = {
    "dataset=text": "dataset.path=x",
    "dataset=jsonl": "dataset.path=x",
    "dataset=huggingface": "dataset.path=x",
    "tokenizer=pretrained": "tokenizer.path=x",
    "mask=pattern": "mask.pattern=SL",
    "scheduler=product": "scheduler.parts=[step,cosine_restarts]",
    "scheduler=chain": "scheduler={parts:[step,cosine],boundaries:[500]}",
}


def found(*overrides: str) -> list[str]:
    return [problem.found for problem in check(make_config(*overrides))]


def hint(*overrides: str) -> str:
    (problem,) = check(make_config(*overrides))
    return problem.hint


def test_the_defaults_are_sound() -> None:
    assert check(make_config()) == []


OPTIONS = (path.relative_to(config_folder()).with_suffix("") for path in config_folder().glob("*/**/*.yaml"))


@pytest.mark.parametrize("option", sorted(f"{path.parts[0]}={'/'.join(path.parts[1:])}" for path in OPTIONS))
def test_every_option_composes(option: str) -> None:
    line = compose_line([option, NEEDED.get(option, "seed=1")], multirun=option.startswith("sweep="))
    assert check(line.config) == []


def test_bounds_are_reported_all_at_once() -> None:
    assert found("trainer.max_steps=0", "optimizer.lr=0", "model.dropout=1", "dataset.val_fraction=0") == [
        "dataset.val_fraction is 0.0, and must be more than 0",
        "model.dropout is 1.0, and must be less than 1",
        "optimizer.lr is 0.0, and must be more than 0",
        "trainer.max_steps is 0, and must be at least 1",
    ]


def test_checks_across_settings_are_reported_all_at_once() -> None:
    problems = check(
        make_config(
            "size.n_heads=3",
            "trainer.batch_size=10",
            "trainer.gradient_accumulation=4",
            "scheduler.warmup_steps=1000",
            "trainer.device=gpu",
        )
    )
    assert [problem.where.split(",")[0] for problem in problems] == [
        "size.d_model",
        "trainer.batch_size",
        "scheduler.warmup_steps",
        "trainer.device",
    ]
    assert "n_heads = 1, 2, 4, or d_model = 129" in problems[0].hint


def test_empty_settings_of_a_dataset_are_refused() -> None:
    assert found("dataset=text", "dataset.path=", "dataset.val_path=", "dataset.test_path='  '") == [
        "dataset.path is empty",
        "dataset.val_path is empty",
        "dataset.test_path is empty",
    ]
    assert found("dataset=huggingface", "dataset.path=data", "dataset.val_split=") == ["dataset.val_split is empty"]
    assert found("dataset=shakespeare", "dataset.path=") == ["dataset.path is empty"]
    assert found("dataset=text", "dataset.path=.", "dataset.val_path=null") == []


@pytest.mark.parametrize("word", ["optimizer.name=muon", "optimizer.name=lion", "model.name=ngram"])
def test_the_name_of_another_option_is_refused(word: str) -> None:
    assert "the settings are not those of" in str(check(make_config(word))[0])


def test_lists_in_a_list_of_strings_are_refused() -> None:
    (found,) = check(make_config("logger=wandb", "logger.tags=[{a:1}]"))
    assert found.found == "logger.tags is [{'a': 1}], and must be a list of strings, as in [a,b]"


def test_rotary_needs_an_even_head() -> None:
    assert "rotary" in found("size.d_model=12", "size.n_heads=4")[0]
    assert found("size.d_model=12", "size.n_heads=4", "model=gpt2") == []


def test_a_bigram_has_no_heads_to_divide() -> None:
    assert found("model=bigram", "size.n_heads=3") == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("size.d_key=7",), ["rotary positions turn pairs, and a head's queries and keys are 7 wide, an odd number"]),
        (
            ("model.output_projection=false", "size.d_value=20", "model.tie_embeddings=true"),
            [
                "without an output projection the 4 heads of 20 values each leave a stream of width 80, and "
                "size.d_model is 128",
                "a tied head is the token embedding, 128 wide, and the stream that reaches it is 80",
            ],
        ),
        (
            ("model.attention=uniform", "model.positions=alibi", "model.norm=none", "model.final_norm=true"),
            [
                "alibi positions act on the scores of attention, and uniform attention has none",
                "model.final_norm is true, and model.norm is none",
            ],
        ),
        (
            ("model.residual=false",),
            ["zero projections without residual connections pass on nothing but zeros, and nothing is ever learned"],
        ),
        (
            ("trainer.attention_backend=blocked", "mask=banded_causal", "mask.pattern=SL"),
            [
                "trainer.attention_backend blocked is for masks that see near by only, and mask=causal of layer 1 sees "
                "further"
            ],
        ),
        (
            ("trainer.attention_backend=flex", "size.n_heads=16"),
            [
                "trainer.attention_backend flex needs heads of width 16 or more, and those of size.d_model 128 with "
                "size.n_heads 16 are 8 wide (values 8)"
            ],
        ),
        (
            ("trainer.attention_backend=flex", "trainer.device=cpu", "model.dropout=0.1"),
            [
                "trainer.attention_backend flex has no dropout of attention's weights",
                "trainer.attention_backend flex has no backward pass on a CPU",
            ],
        ),
        (
            ("trainer.attention_backend=sdpa", "model.attention=uniform", "model.positions=none"),
            ["trainer.attention_backend is sdpa, and uniform attention has one way alone"],
        ),
        (
            ("model.logit_softcap=0", "size.d_ff=0", "model.attention_dropout=1"),
            [
                "model.logit_softcap is 0.0, and must be more than 0",
                "model.attention_dropout is 1.0, and must be less than 1",
                "size.d_ff is 0, and must be at least 1",
            ],
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert found(*overrides) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ("size.n_heads=3", "size.d_key=8", "size.d_value=8"),
        ("size.n_heads=3", "model.attention=uniform", "model.positions=none"),
        ("size.n_layers=0",),
        ("trainer.attention_backend=blocked", "mask=banded_causal"),
        ("trainer.attention_backend=flex", "model.dropout=0.1", "model.attention_dropout=0"),
    ],
)
def test_parts_that_fit_are_not(overrides: tuple[str, ...]) -> None:
    assert found(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("model.order=0",), ["model.order is 0, and must be at least 1"]),
        (
            ("model.order=6", "model.add_k=0"),
            ["model.order is 6, and must be at most 5", "model.add_k is 0.0, and must be more than 0"],
        ),
        (("model.add_k=-1",), ["model.add_k is -1.0, and must be more than 0"]),
        (("model.add_k=inf",), ["model.add_k is inf, and must be a finite number"]),
        (("model.order=4", "size.context_length=3"), []),
        (
            ("model.order=5", "size.context_length=3"),
            ["model.order 5 looks at 4 tokens, and size.context_length 3 shows fewer"],
        ),
        (("size.n_heads=3",), []),
    ],
)
def test_an_ngram_has_bounds(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert found("model=ngram", *overrides) == expected


def test_identity_ignores_only_what_cannot_change_the_numbers() -> None:
    config = make_config()
    assert identity(config) == identity(make_config("trainer.max_steps=9", "logger=none", "trainer.log_every=3"))
    for override in ("seed=2", "optimizer.lr=0.5", "dataset=tiny_shakespeare", "model.dropout=0.1"):
        assert identity(config) != identity(make_config(override)), override


def test_sizes_are_the_ones_that_are_taught() -> None:
    tiny, small = (dataclasses.astuple(make_config(f"size={name}").size) for name in ("tiny", "small"))
    assert (tiny, small) == ((4, 4, 128, 64, None, None, None), (6, 6, 384, 256, None, None, None))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("mask=causal",), [CausalConfig()] * 4),
        (("mask.pattern=[causal,banded_causal]",), [CausalConfig(), BandedCausalConfig(window=16)] * 2),
        (("mask=banded_causal", "mask.pattern=[causal]", "mask.window=5"), [CausalConfig()] * 4),
        (
            ("mask=banded_causal", "mask.pattern=SSSL", "mask.window=5"),
            [BandedCausalConfig(window=5)] * 3 + [CausalConfig()],
        ),
        (("mask=causal", "mask.pattern=LS"), [CausalConfig(), BandedCausalConfig()] * 2),
        (
            ("mask=pattern", "mask.pattern=[strided,block_local]", "mask.stride=3", "mask.block_size=4"),
            [StridedConfig(stride=3), BlockLocalConfig(block_size=4)] * 2,
        ),
        (("mask=document",), [DocumentConfig()] * 4),
        (("mask.pattern=[document,causal]",), [DocumentConfig(), CausalConfig()] * 2),
        (("mask=document", "mask.pattern=[document,causal]"), [DocumentConfig(), CausalConfig()] * 2),
        (
            ("mask.within_documents=true", "mask.pattern=LS"),
            [CausalConfig(within_documents=True), BandedCausalConfig(within_documents=True)] * 2,
        ),
        (
            ("mask=pattern", "mask.within_documents=true", "mask.pattern=[document,strided]"),
            [DocumentConfig(), StridedConfig(within_documents=True)] * 2,
        ),
    ],
)
def test_the_layers_take_the_masks_of_a_pattern_in_turn(overrides: tuple[str, ...], expected: list[MaskConfig]) -> None:
    config = make_config(*overrides)
    assert check(config) == []
    assert layer_masks(config) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mask=causal", False),
        ("mask=document", True),
        ("mask=none mask.within_documents=true", True),
        ("mask.pattern=[causal,document]", True),
        ("mask=document mask.pattern=LL", False),
        ("mask=document model=bigram", False),
        ("mask=document model=gpt2", True),
    ],
)
def test_documents_are_read_where_a_layer_keeps_within_them(line: str, expected: bool) -> None:
    assert reads_documents(make_config(*line.split())) is expected


def test_documents_that_are_taken_apart_are_refused() -> None:
    by_line = "dataset.split_by=line"
    for mask in ("mask=document", "mask.within_documents=true", "mask.pattern=[causal,document]"):
        assert found(mask, by_line) == [
            "mask.within_documents needs whole documents, and dataset.split_by line takes them apart"
        ]
        assert found(mask, by_line, "trainer.sampling=lines") == []
        assert found(mask, by_line, "model=bigram") == []
    assert found("mask=document", "mask.within_documents=false") == [
        "mask.within_documents is false, and mask=document is causal within documents"
    ]


def test_layers_with_the_same_mask_are_found_together() -> None:
    config = make_config("mask.pattern=[causal,banded_causal,causal,none]")
    assert [(mask.name, layers) for mask, layers in layers_by_mask(config)] == [
        ("causal", [0, 2]),
        ("banded_causal", [1]),
        ("none", [3]),
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("mask=banded", "mask.window=0"), ["mask.window is 0, and must be at least 1"]),
        (("mask=banded_causal", "mask.window=65"), ["mask.window 65 is longer than size.context_length 64"]),
        (("mask=prefix", "mask.prefix_length=65"), ["mask.prefix_length 65 is longer than size.context_length 64"]),
        (("mask=strided", "mask.stride=0"), ["mask.stride is 0, and must be at least 1"]),
        (("mask=block_local", "mask.block_size=65"), ["mask.block_size 65 is longer than size.context_length 64"]),
        (
            ("mask.pattern=SL", "size.context_length=8"),
            ["mask.window 16, as banded_causal has it, is longer than size.context_length 8"],
        ),
        (("mask=pattern", "mask.pattern=LL", "mask.window=65"), []),
        (
            ("mask=pattern", "mask.pattern=LS", "mask.window=65"),
            ["mask.window 65 is longer than size.context_length 64"],
        ),
        (("mask=pattern",), ["mask.pattern is None"]),
        (("mask.pattern=[]",), ["mask.pattern is []"]),
        (("mask.pattern=''",), ["mask.pattern is ''"]),
        (("mask.pattern=5",), ["mask.pattern is 5"]),
        (("mask.pattern=[[causal],2,3,4]",), [f"no mask is called {name}" for name in ("['causal']", "2", "3", "4")]),
        (("mask.pattern=[pattern]",), ["no mask is called 'pattern'"]),
        (("mask.pattern=SXLY",), ["mask.pattern is 'SXLY', and no mask has the letter X, Y"]),
        (
            ("mask.pattern=[causal,bandd,casual]",),
            [
                "no mask is called 'bandd'",
                "no mask is called 'casual'",
                "mask.pattern has 3 masks, which size.n_layers 4 layers cannot take in turn",
            ],
        ),
        (
            ("mask.pattern=SSL", "size.n_heads=3", "trainer.device=gpu"),
            [
                "size.d_model 128 cannot be divided among size.n_heads 3 heads",
                "mask.pattern has 3 masks, which size.n_layers 4 layers cannot take in turn",
                "trainer.device is 'gpu'",
            ],
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert found(*overrides) == expected


def test_a_mistyped_mask_of_a_pattern_has_a_neighbour() -> None:
    (problem,) = check(make_config("mask.pattern=[bandd]"))
    assert "did you mean banded?" in problem.hint
    (problem,) = check(make_config("mask.pattern=SSS"))
    assert problem.hint == "its length must divide the layers: 1, 2, 4"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("scheduler=product", "scheduler.parts=[step,{name:cosine,final_fraction:0.5}]"), []),
        (("scheduler=product", "scheduler.parts=[]"), ["scheduler.parts is empty"]),
        (
            (
                "scheduler=product",
                "scheduler.parts=[stepp,{name:step,gama:2},{name:step,gamma:2},{gamma:1},[step],"
                "{name:step,warmup_steps:3},{name:step,step_size:1.5,gamma:abc},product,{name:step,gamma:'0.5'}]",
            ),
            [
                "no scheduler is called 'stepp'",
                "there is no setting 'gama' in step",
                "scheduler.parts[2].gamma is 2.0, and must be at most 1",
                "scheduler.parts[3] is {'gamma': 1}",
                "scheduler.parts[4] is ['step']",
                "scheduler.parts[5].warmup_steps is set, and it belongs to the whole",
                "scheduler.parts[6].step_size is 1.5, which is no int or None",
                "scheduler.parts[6].gamma is 'abc', which is no float",
                "product cannot be a part of another schedule",
                "scheduler.parts[8].gamma is '0.5', which is no float",
            ],
        ),
        (
            ("scheduler=chain", "scheduler.parts=[step,cosine]", "scheduler.boundaries=[10,20]"),
            [
                "scheduler.boundaries has 2 steps for 2 parts",
                "scheduler.boundaries [10, 20] leave a part without steps",
            ],
        ),
        *(
            (
                ("scheduler=chain", "scheduler.parts=[step,cosine,linear]", f"scheduler.boundaries=[{boundaries}]"),
                [f"scheduler.boundaries [{boundaries.replace(',', ', ')}] leave a part without steps"],
            )
            for boundaries in ("200,100", "200,200", "50,100", "200,1000")
        ),
        (
            ("scheduler=chain", "scheduler.parts=[step,cosine]", "scheduler.boundaries=[51]"),
            [],
        ),
        (
            ("scheduler=product", "scheduler.parts=[nothing]", "trainer.device=gpu", "scheduler.warmup_steps=1000"),
            [
                "scheduler.warmup_steps 1000 leaves nothing of trainer.max_steps 1000",
                "no scheduler is called 'nothing'",
                "trainer.device is 'gpu'",
            ],
        ),
    ],
)
def test_schedules_that_do_not_fit_are_refused(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert found(*overrides) == expected


def test_clipping_by_norm_and_by_value_at_once_is_refused() -> None:
    assert found("trainer.clip_value=0.5") == ["trainer.clip_norm 1.0 and trainer.clip_value 0.5 are both set"]
    assert found("trainer.clip_value=0.5", "trainer.clip_norm=null") == []
    assert found("trainer.clip_norm=null") == []


def test_a_plateau_goes_by_evaluations() -> None:
    plateau = make_config("scheduler=plateau")
    assert not may_change("trainer.eval_every", plateau)
    assert identity(plateau) != identity(make_config("scheduler=plateau", "trainer.eval_every=3"))


@pytest.mark.parametrize("device", ["'cuda:²'", "CPU", "'cuda:99999'", "''", "cpu:0"])
def test_a_device_must_have_a_name_of_a_device(device: str) -> None:
    assert found(f"trainer.device={device}") == ["trainer.device is " + (device if device[0] == "'" else f"'{device}'")]


def test_a_mistyped_part_of_a_schedule_has_a_neighbour() -> None:
    stepp, gama = check(make_config("scheduler=product", "scheduler.parts=[stepp,{name:step,gama:0.5}]"))
    assert "did you mean step?" in stepp.hint
    assert "did you mean gamma?" in gama.hint


def test_numbers_that_are_not_finite_are_refused_everywhere() -> None:
    schemas = [schema for registry in GROUPS.values() for schema in registry.schemas.values()]
    for schema in (*schemas, SizeConfig, TrainerConfig, LrMultipliers):
        fields = [field for field in dataclasses.fields(schema) if "float" in str(field.type)]
        for field, value in itertools.product(fields, (math.inf, -math.inf, math.nan)):
            config = schema(**{field.name: value})
            assert [problem.found for problem in outside_bounds(config)] == [
                f"{field.name} is {value}, and must be a finite number"
            ]


def test_numbers_in_lists_and_tables_must_be_finite() -> None:
    parts = "scheduler.parts=[{name:step,gamma:inf},{name:cosine,final_fraction:nan}]"
    assert found("scheduler=product", parts) == [
        "scheduler.parts[0].gamma is inf, and must be a finite number",
        "scheduler.parts[1].final_fraction is nan, and must be a finite number",
    ]
    assert found("optimizer.lr_multipliers.head=inf", f"trainer.max_steps={10**19}") == [
        "optimizer.lr_multipliers.head is inf, and must be a finite number",
        f"trainer.max_steps is {10**19}, and must be less than 2**63 in size",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.clip_norm=0", "trainer.clip_norm=null disables clipping by norm"),
        ("trainer.clip_norm=inf", "trainer.clip_norm=null disables clipping by norm"),
        ("trainer.clip_value=-1", "trainer.clip_value=null disables clipping by value"),
        ("trainer.save_every=0", "trainer.save_every=70 (trainer.max_steps) saves only"),
        ("trainer.eval_every=-1", "trainer.eval_every=70 (trainer.max_steps) evaluates only at the end"),
        ("trainer.log_every=0", "trainer.log_every=70 (trainer.max_steps) writes one row"),
        ("trainer.keep_last=0", "trainer.keep_last=1 keeps the best and the latest checkpoint, null keeps all"),
        ("trainer.keep_every=0", "trainer.keep_every=null"),
        ("trainer.save_every_minutes=0", "trainer.save_every_minutes=null"),
        ("trainer.ema_decay=0", "trainer.ema_decay=null"),
        ("trainer.ema_decay=1", "trainer.ema_decay=null"),
        ("trainer.sample_tokens=-1", "trainer.sample_tokens=0"),
        ("trainer.gradient_accumulation=0", "trainer.gradient_accumulation=1"),
        ("model.dropout=-1", "model.dropout=0"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=0"),
        ("scheduler.warmup_steps=-1", "scheduler.warmup_steps=0"),
    ],
)
def test_zero_comes_with_how_to_switch_it_off(override: str, expected: str) -> None:
    assert hint("trainer.max_steps=70", override).startswith(expected)


def test_every_hint_to_switch_off_names_a_value_in_bounds() -> None:
    for schema in (TrainerConfig, SizeConfig, *(s for registry in GROUPS.values() for s in registry.schemas.values())):
        for field in dataclasses.fields(schema):
            word = setting_of(field).off.split(" ")[0]
            if word and "{" not in word:
                value = None if word == "null" else float(word)
                assert value is not None or "None" in str(field.type), field.name
                assert list(outside_bounds(schema(**{field.name: value}))) == []
