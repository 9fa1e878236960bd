"""`ling plan` prints layouts, why others do not fit, and the published figures beside its own."""

import json


def test_the_best_layout_comes_first_and_those_that_do_not_fit_say_why(ling) -> None:
    result = ling("plan", "--preset", "ling_mini", "--gpus", 4, "--gpu", "h100", "--sequence-length", 4096)
    assert result.code == 0, result.err
    assert "Predictions, not measurements" in result.out
    lines = result.out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("layout"))
    assert lines[header + 1].startswith("shard 4, expert")
    assert "Do not fit" in result.out
    assert "too many; moments" in result.out


def test_json_holds_what_the_table_shows(ling) -> None:
    tree = json.loads(ling("plan", "--preset", "ling_mini", "--gpus", 16, "--expert", 8, "--json", "--top", 2).out)
    assert len(tree["fitting"]) == 2
    first = tree["fitting"][0]
    assert first["layout"]["expert"] == 8
    assert first["peak_bytes"]["total"] > first["resting_bytes"] > 0
    assert first["bound_by"] in first["seconds"]


def test_what_never_fits_is_said(ling) -> None:
    result = ling("plan", "--preset", "ling_mini")
    assert result.code == 0
    assert "Nothing fits" in result.out


def test_published_figures_stand_beside_predictions(ling) -> None:
    out = ling("plan", "--published").out
    for figure in ("81,222", "307,264", "448,726", "27.5", "66.4"):
        assert figure in out
    assert out.count("(fitted)") == 1
    tree = json.loads(ling("plan", "--published", "--json").out)
    assert len(tree["throughput"]) == 12


def test_a_small_model_is_simulated(ling) -> None:
    result = ling("plan", "--preset", "demo", "--gpus", 4, "--expert", 1, "--tensor", 1, "--pipeline", 1, "--simulate",
                  "--micro-batch", 1)  # fmt: skip
    assert result.code == 0, result.err
    assert "it constructs and steps" in result.out


def test_this_machine_is_measured(ling) -> None:
    result = ling("plan", "--preset", "demo", "--gpu", "cpu")
    assert result.code == 0, result.err
    assert "this CPU" in result.out
    assert "float32" in result.out


def test_mistakes_are_one_line(ling) -> None:
    for arguments, words in (
        (("--gpu", "v100"), "unknown GPU v100"),
        (("--gpus", 8, "--expert", 3), "does not fit 256 experts in 8 groups"),
        (("--gpus", 8, "--expert", 8, "--simulate"), "cannot simulate parallel.expert 8"),
        (("--published", "--gpus", 16), "it goes with --json alone"),
        (("--preset", "ling_mni"), "did you mean ling_mini?"),
    ):
        result = ling("plan", *arguments)
        assert result.code == 2, result
        assert words in result.err
        assert len(result.err.strip().splitlines()) == 1, result.err
