from tests.helpers import mistakes


def test_empty_dataset_settings_are_refused() -> None:
    assert mistakes("dataset=text", "dataset.path=", "dataset.val_path=", "dataset.test_path='  '") == [
        "dataset.path is empty",
        "dataset.val_path is empty",
        "dataset.test_path is empty",
    ]
    assert mistakes("dataset=huggingface", "dataset.path=data", "dataset.val_split=") == ["dataset.val_split is empty"]
    assert mistakes("dataset=shakespeare", "dataset.path=") == ["dataset.path is empty"]
    assert mistakes("dataset=text", "dataset.path=.", "dataset.val_path=null") == []
