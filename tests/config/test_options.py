import pytest

from nanolm.compose import compose_line, config_folder
from nanolm.config.checks import check

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

OPTIONS = (path.relative_to(config_folder()).with_suffix("") for path in config_folder().glob("*/**/*.yaml"))


@pytest.mark.parametrize("option", sorted(f"{path.parts[0]}={'/'.join(path.parts[1:])}" for path in OPTIONS))
def test_every_option_composes(option: str) -> None:
    line = compose_line([option, NEEDED.get(option, "seed=1")], multirun=option.startswith("sweep="))
    assert check(line.config) == []
