"""Which files a part of a data set comes to, by its card and by names alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling.data.hub.card import read_card
from ling.data.hub.name import DatasetName, parse
from ling.data.hub.parts import Part, at_path, choose
from ling.errors import ConfigError, DataError, LingError
from ling.hub import Told

WHERE = "hf://o/n"


def listing(*paths: str, **sizes: int) -> dict[str, Told]:
    return {path: Told(sizes.get(path.rpartition(".")[2], 10)) for path in paths}


def chosen(
    paths: dict[str, Told], card: str = "", subset: str | None = None, split: str | None = None, converted: bool = False
) -> list[str]:
    part = choose(paths, read_card(card, WHERE), converted=converted, subset=subset, split=split, where=WHERE)
    return part.files


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://o/n", DatasetName("o/n")),
        ("hf://datasets/o/n/", DatasetName("o/n")),
        ("hf://o/n@v1.0", DatasetName("o/n", "v1.0")),
        ("hf://o/n@refs/convert/parquet/en/train", DatasetName("o/n", "refs/convert/parquet", "en/train")),
        ("hf://o/n@refs/pr/3", DatasetName("o/n", "refs/pr/3")),
        ("hf://o/n@a%2Fb/c/*.parquet", DatasetName("o/n", "a/b", "c/*.parquet")),
        ("hf://o/n/sample/a@b.jsonl", DatasetName("o/n", None, "sample/a@b.jsonl")),
    ],
)
def test_names_are_read(text: str, name: DatasetName) -> None:
    assert parse(text) == name
    again = parse(name.file("0" * 40, "x/y.jsonl"))
    assert again == DatasetName("o/n", "0" * 40, "x/y.jsonl")


@pytest.mark.parametrize("text", ["hf://", "hf://squad", "hf://o/", "hf://o/n@", "hf://datasets/squad", "hf://-o/n"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a data set's name: that is hf://OWNER/NAME"):
        parse(text)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00003.parquet", "train"),
        ("data/train-00000-of-00003-0a1b2c.parquet", "train"),
        ("data/train_sft-00000-of-00001.parquet", "train_sft"),
        ("en/c4-train.00000-of-01024.json.gz", "train"),
        ("en/c4-validation.00000-of-00008.json.gz", "validation"),
        ("train.jsonl", "train"),
        ("my_train_file1.jsonl", "train"),
        ("dev.json", "validation"),
        ("train/test.jsonl", "test"),
        ("valid/part.0.jsonl", "validation"),
        ("eval/a/b.txt", "test"),
        ("sample/10BT/000_00000.parquet", "train"),  # no word: all is one split
        ("constraint.jsonl", "train"),
        ("latest.jsonl", "train"),
    ],
)
def test_names_of_files_and_folders_tell_the_split(path: str, split: str) -> None:
    assert chosen(listing(path, "README.md", ".gitattributes"), split=split) == [path]


def test_the_train_split_is_taken_and_others_are_named() -> None:
    files = listing("train-a.jsonl", "train-b.jsonl", "test.jsonl", "extra.jsonl")
    assert chosen(files) == ["train-a.jsonl", "train-b.jsonl"]
    with pytest.raises(ConfigError, match="subset default has no split 'dev'; it has test, train"):
        chosen(files, split="dev")
    with pytest.raises(ConfigError, match="has no subset 'en'; it has default"):
        chosen(files, subset="en")
    with pytest.raises(ConfigError, match="has the splits test, validation; choose one with --split"):
        chosen(listing("test.jsonl", "dev.jsonl"))
    assert chosen(listing("test.jsonl")) == ["test.jsonl"]


def test_what_is_about_a_repository_is_no_data() -> None:
    about = ("LICENSE.txt", "requirements.txt", "dataset_infos.json", ".cache/a.jsonl", "docs/x.md", "__MACOSX/b.jsonl")
    assert chosen(listing("a.jsonl", *about)) == ["a.jsonl"]
    assert chosen(listing("state_of_the_union.txt", "licences_corpus.txt")) == [
        "licences_corpus.txt",
        "state_of_the_union.txt",
    ]


def test_of_several_formats_the_largest_is_taken_and_the_rest_told() -> None:
    part = choose(
        listing("a.jsonl", "a.parquet", "notes.txt", jsonl=50, parquet=20),
        {}, converted=False, subset=None, split=None, where=WHERE,
    )  # fmt: skip
    assert part == Part("subset default, split train", ["a.jsonl"], ["a.parquet", "notes.txt"])
    assert part.can_be_read


CARD = """---
license: mit
configs:
- config_name: en
  default: true
  data_files:
  - {split: train, path: [en/a*.jsonl, en/more/**]}
  - split: test
    path: en/test.jsonl
- config_name: de
  data_files: {train: de/*, dev: "de/dev.jsonl"}
- config_name: flat
  data_files: "*.jsonl"
- config_name: folder
  data_dir: de
- config_name: under
  data_dir: en
  data_files: [test.jsonl]
- config_name: lost
  data_files: none/*.jsonl
---
# Text
"""
FILES = listing(
    *("en/a1.jsonl", "en/b.jsonl", "en/more/x/y.jsonl", "en/test.jsonl", "de/train.jsonl", "de/dev.jsonl", "z.jsonl")
)


@pytest.mark.parametrize(
    ("subset", "split", "files"),
    [
        (None, None, ["en/a1.jsonl", "en/more/x/y.jsonl"]),
        ("en", "test", ["en/test.jsonl"]),
        ("de", None, ["de/dev.jsonl", "de/train.jsonl"]),
        ("de", "dev", ["de/dev.jsonl"]),
        ("flat", None, ["z.jsonl"]),
        ("folder", None, ["de/train.jsonl"]),
        ("folder", "validation", ["de/dev.jsonl"]),
        ("under", None, ["en/test.jsonl"]),
    ],
)
def test_a_card_decides(subset: str | None, split: str | None, files: list[str]) -> None:
    assert chosen(FILES, CARD, subset, split) == files


def test_mistakes_beside_a_card_list_what_there_is() -> None:
    with pytest.raises(ConfigError, match="has no subset 'fr'; it has de, en, flat, folder, lost, under"):
        chosen(FILES, CARD, "fr")
    with pytest.raises(ConfigError, match="subset en has no split 'dev'; it has test, train"):
        chosen(FILES, CARD, "en", "dev")
    with pytest.raises(DataError, match=r"gives none/\*\.jsonl to subset lost, split train, and no data file matches"):
        chosen(FILES, CARD, "lost")
    many = "---\nconfigs:\n" + "".join(f"- config_name: l{n:02}\n  data_files: a.jsonl\n" for n in range(40)) + "---\n"
    with pytest.raises(ConfigError, match=r"has the subsets l00, .* l11 and 28 more; choose one with --subset"):
        chosen(FILES, many)


@pytest.mark.parametrize("card", ["", "# Title\n", "---\nlicense: mit\n---\n", "---\n---\n", "---\n- 1\n---\n"])
def test_a_card_that_says_nothing_leaves_it_to_names(card: str) -> None:
    assert read_card(card, WHERE) == {}


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ("configs: [", "its YAML is damaged"),
        ("configs: 3", "configs is no list of tables"),
        ("configs: [a]", "configs is no list of tables"),
        ("configs: [{data_files: [{split: train}]}]", "data_files are neither paths nor"),
        ("configs: [{data_files: {1: a}}]", "data_files are neither paths nor"),
    ],
)
def test_a_card_that_cannot_be_meant_is_one_line(head: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_card(f"---\n{head}\n---\n", WHERE)
    assert "\n" not in str(caught.value)


@given(st.text("-\n :[]{}configsdata_fle*&!|'\"", max_size=60) | st.text(max_size=30))
def test_any_card_is_read_or_one_line(text: str) -> None:
    said = ""
    try:
        chosen(FILES, f"---\n{text}\n---\n")
    except LingError as error:
        said = str(error)
    assert "\n" not in said


def test_folders_of_the_converted_branch_are_subsets_and_splits() -> None:
    files = listing(
        "en/train/0000.parquet", "en/train/0001.parquet", "en/test/0000.parquet", "de/partial-train/0.parquet"
    )
    assert chosen(files, subset="en", converted=True) == ["en/train/0000.parquet", "en/train/0001.parquet"]
    assert chosen(files, subset="de", converted=True) == ["de/partial-train/0.parquet"]
    with pytest.raises(ConfigError, match="has the subsets de, en; choose one with --subset"):
        chosen(files, converted=True)


def test_a_path_names_a_file_a_folder_or_a_pattern() -> None:
    files = listing("en/a.jsonl", "en/deep/b.parquet", "en/README.md", "en/c.csv", "de/notes.md", "x[1].jsonl")
    assert at_path("en/a.jsonl", files, WHERE).files == ["en/a.jsonl"]
    assert at_path("en", files, WHERE).files == ["en/a.jsonl", "en/deep/b.parquet"]
    assert at_path("en/*", files, WHERE).files == ["en/a.jsonl"]
    assert at_path("**/*.parquet", files, WHERE).files == ["en/deep/b.parquet"]
    assert at_path("de/notes.md", files, WHERE).files == ["de/notes.md"]
    assert at_path("x[1].jsonl", files, WHERE).files == ["x[1].jsonl"]
    with pytest.raises(DataError, match=r"holds \.csv there, which is not read; data files end in \.jsonl"):
        at_path("en/c.csv", files, WHERE)
    with pytest.raises(DataError, match=r"has no fr/a\.jsonl; it holds de, en, x\[1\]\.jsonl"):
        at_path("fr/a.jsonl", files, WHERE)
    with pytest.raises(DataError, match=r"has no en/deep/c\.parquet; en/deep/ holds b\.parquet"):
        at_path("en/deep/c.parquet", files, WHERE)
