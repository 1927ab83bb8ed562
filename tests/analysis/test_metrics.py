from pathlib import Path

from nanolm.analysis.collection import find
from nanolm.analysis.metrics import compute_metrics
from tests.runs.made import make_run

GPT = {"model": "gpt", "dataset": "tiny_shakespeare", "tokenizer": "char", "size": "small"}


def test_flops_are_computed_if_the_summary_has_none(tmp_path: Path) -> None:
    from nanolm.config.yaml_io import save_yaml
    from nanolm.model import count
    from tests.helpers import make_config

    config = make_config("model=gpt", "size=tiny")
    make_run(tmp_path / "gpt", config=save_yaml(config), flops_per_token=None)
    make_run(tmp_path / "plugin", settings={"model.name": "mine"}, flops_per_token=None)
    by_name = {run.name: compute_metrics(run).flops for run in find([tmp_path])}
    assert by_name == {"gpt": 640 * count.training_flops_per_token(config, 65), "plugin": None}
