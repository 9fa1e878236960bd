"""`ling plan` prints layouts, why others do not fit, and the published figures beside its own."""

import json
import re


def test_the_best_layout_comes_first_and_those_that_do_not_fit_say_why(ling) -> None:
    result = ling("plan", "--preset", "ling_mini", "--gpus", 4, "--gpu", "h100", "--sequence-length", 4096)
    assert result.code == 0, result.err
    assert "Predictions, not measurements" in result.out
    lines = result.out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("layout"))
    assert re.match(r"shard \d, expert \d", lines[header + 1])
    assert "Do not fit" in result.out
    assert "too many; moments" in result.out


def test_json_holds_what_the_table_shows(ling) -> None:
    tree = json.loads(
        ling("plan", "--preset", "ling_mini", "--gpus", 16, "parallel.expert=8", "--json", "--top", 2).out
    )
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
    result = ling("plan", "--preset", "tiny", "--gpus", 4, "parallel.expert=2", "parallel.tensor=2", "--simulate",
                  "parallel.pipeline=1", "--micro-batch", 1, "--precision", "float32")  # fmt: skip
    assert result.code == 0, result.err
    assert "it constructs and steps" in result.out
    assert "shard 2, expert 2, tensor 2" in result.out


def test_a_recipe_says_what_is_planned_and_zeros_are_searched(ling, tmp_path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "preset: demo\nparallel: {expert: 0, recompute: full, pipeline: 1}\noptim: {method: muon}\n"
        "train: {sequence_length: 128, global_batch_size: 32, micro_batch_size: 2, precision: float32}\n",
        encoding="utf-8",
    )
    found = ling("plan", "--recipe", recipe, "--gpus", 4, "parallel.tensor=1", "--json", "--top", 99)
    layouts = json.loads(found.out)["fitting"]
    assert {(c["layout"]["recompute"], c["layout"]["tensor"], c["micro_batch"]) for c in layouts} == {("full", 1, 2)}
    assert {c["layout"]["expert"] for c in layouts} == {1, 2, 4}
    out = ling("plan", "--recipe", recipe, "--gpus", 4).out
    assert "float32, on 4 x" in out
    assert "32 sequences of 128 per step" in out
    adam = ling("plan", "--recipe", recipe, "--gpus", 4, "parallel.expert=1", "optim.method=adamw", "--json").out
    muon = ling("plan", "--recipe", recipe, "--gpus", 4, "parallel.expert=1", "--json").out
    moments = [json.loads(text)["fitting"][0]["resting_bytes"] for text in (muon, adam)]
    assert moments[0] < 0.75 * moments[1]


def test_this_machine_is_measured(ling) -> None:
    result = ling("plan", "--preset", "demo", "--gpu", "cpu")
    assert result.code == 0, result.err
    assert "this CPU" in result.out
    assert "float32" in result.out


def test_mistakes_are_one_line(ling) -> None:
    for arguments, words in (
        (("--gpu", "v100"), "unknown GPU v100"),
        (("--gpus", 8, "parallel.expert=3"), "does not fit 256 experts in 8 groups"),
        (("--gpus", 2048, "--preset", "demo", "--simulate"), "cannot simulate 2048 ranks; at most 1024"),
        (("--published", "--gpus", 16), "it goes with --json alone"),
        (("--preset", "ling_mni"), "did you mean ling_mini?"),
    ):
        result = ling("plan", *arguments)
        assert result.code == 2, result
        assert words in result.err
        assert len(result.err.strip().splitlines()) == 1, result.err


def test_one_gpu_trains_all_of_ling_mini_by_a_recipe_and_lora_is_planned_only(ling) -> None:
    tree = json.loads(ling("plan", "--recipe", "cpt_mini_1gpu", "--json").out)
    (found,) = tree["fitting"]
    assert tree["planned_only"] is None
    assert found["peak_bytes"]["total"] < 74 * 2**30
    assert found["peak_bytes"]["gradients"] < 1.6 * 2**30
    out = ling("plan", "--preset", "ling_mini", "--precision", "lora_fp8", "--gpu", "rtx4090").out
    assert "The trainer has no LoRA yet" in out
    assert "Do not fit" not in out
    tree = json.loads(
        ling("plan", "--preset", "ling_mini", "--precision", "lora_fp8", "--gpu", "rtx4090", "--json").out
    )
    assert tree["planned_only"].startswith("The trainer has no LoRA yet")


def test_layouts_that_training_refuses_with_small_states_are_not_proposed(ling) -> None:
    arguments = ("plan", "--preset", "ling_mini", "--gpus", "8", "--top", "99", "--json")

    def sizes(*more: str) -> set[tuple[int, int]]:
        fitting = json.loads(ling(*arguments, *more).out)["fitting"]
        return {(found["layout"]["tensor"], found["layout"]["pipeline"]) for found in fitting}

    assert len(sizes()) > 1
    assert sizes("optim.moments=fp8") == {(1, 1)}
    assert sizes("--precision", "fp8") == {(1, 1)}


def test_what_training_in_fp8_refuses_is_neither_proposed_nor_planned(ling) -> None:
    arguments = ("plan", "--preset", "ling_mini", "--gpus", "4", "--precision", "fp8", "--json")
    found = json.loads(ling(*arguments, "--top", "99").out)["fitting"]
    assert {one["layout"]["recompute"] for one in found} == {"full"}, "selective would fit, and is faster"
    refused = ling(*arguments, "parallel.tensor=2")
    assert refused.code == 2
    assert "train.precision fp8 does without tensor and pipeline ranks, but parallel.tensor is 2" in refused.err


def test_the_room_that_a_library_wants_between_experts_is_planned(ling) -> None:
    arguments = ("plan", "--preset", "ling_mini", "--gpus", "8", "--precision", "fp8", "parallel.expert=1", "--json")
    auto, library = (
        json.loads(ling(*arguments, f"train.fp8.backend={backend}").out)["fitting"][0]["peak_bytes"]["total"]
        for backend in ("auto", "deep_gemm")
    )
    assert library > auto + 2**26
