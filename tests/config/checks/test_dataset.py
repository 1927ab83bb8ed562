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


def test_instructions_need_a_template_with_an_end() -> None:
    given = ("dataset=instructions", "dataset.path=rows.jsonl")
    assert not mistakes(*given)
    assert mistakes(*given, "dataset.template.user=Q", 'dataset.template.assistant="{content}{content}"') == [
        "dataset.template.user has {content} 0 times, and needs it once: 'Q'",
        "dataset.template.assistant has {content} 2 times, and needs it once: '{content}{content}'",
    ]
    assert mistakes(*given, 'dataset.template.assistant="A: {content}"') == [
        "dataset.template.assistant has nothing after {content}, so no response would have an end: 'A: {content}'"
    ]
    assert mistakes(*given, r'dataset.template.user="Q{content}\n"') == [
        r"dataset.template.user has a backslash and an n, not a line end: 'Q{content}\\n'"
    ]


def test_instructions_are_not_divided_into_lines() -> None:
    given = ("dataset=instructions", "dataset.path=rows.jsonl", "trainer.sampling=lines", "dataset.split_by=line")
    assert mistakes(*given, "dataset.prompt_field=response") == [
        "two of the fields of dataset=instructions have the same name: response, response, messages",
        "trainer.sampling=lines would separate the lines of a conversation",
        "dataset.split_by=line would separate the lines of a conversation",
    ]
