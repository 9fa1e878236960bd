"""`ling config` prints what was resolved, and numbers anybody can check."""

import json

import yaml


def test_the_published_counts_are_printed(ling) -> None:
    result = ling("config", "--preset", "ling_mini")
    assert result.code == 0
    for count in ("16,255,638,528", "1,432,968,192", "789,142,528", "827,861,248"):
        assert count in result.out
    assert "999,705,309,184" in ling("config", "--preset", "ling_1t").out


def test_the_tree_is_yaml_that_gives_the_same_tree(ling, tmp_path) -> None:
    first = ling("config", "--preset", "tiny", "model.hidden_size=128", "optim.lr=0.001").out
    tree = first[: first.index("\n\n")]
    assert yaml.safe_load(tree)["model"]["hidden_size"] == 128
    (tmp_path / "recipe.yaml").write_text(tree, encoding="utf-8")
    assert ling("config", "--recipe", tmp_path / "recipe.yaml").out == first


def test_json_is_one_object(ling) -> None:
    tree = json.loads(ling("config", "--preset", "tiny", "--json").out)
    assert tree["parameters"]["total"] > 0
    assert tree["flops_per_token"]["training"] > 2 * tree["flops_per_token"]["forward"]


def test_flops_grow_with_the_length(ling) -> None:
    short, long = (
        json.loads(ling("config", "--preset", "ling_mini", "--json", "--sequence-length", n).out)["flops_per_token"]
        for n in (1024, 32768)
    )
    assert long["forward"] > short["forward"]


def test_what_cannot_be_meant_is_refused_in_one_line(ling) -> None:
    for length in (0, -5):
        result = ling("config", "--sequence-length", length)
        assert (result.code, result.out) == (2, "")
        assert "--sequence-length" in result.err
    for arguments, message in (
        (("--preset", ""), "ling: unknown preset ''; known: ling_mini"),
        (("--json", "optim.lr=.nan"), "ling: optim.lr must be a finite number, got nan\n"),
    ):
        result = ling("config", *arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(message)
