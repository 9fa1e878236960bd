"""What a recipe's patterns mean, and what is frozen by them."""

import pytest
import torch

from ling.config.training import OptimConfig
from ling.errors import ConfigError
from ling.optim.build import build_optimizer
from ling.optim.expert_bias import update_expert_biases
from ling.optim.patterns import KINDS, freeze_, matching
from ling.testing.models import tiny_model


def names() -> list[str]:
    model = tiny_model(use_bias=True)
    return [*dict(model.named_parameters()), *dict(model.named_buffers())]


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_for_a_kind_means_something(kind: str) -> None:
    found = matching(names(), kind, "optim.freeze")
    assert 0 < len(found) < len(names()) / 2, found


def test_a_router_is_its_matrix_alone_and_gate_projections_are_none() -> None:
    found = matching(names(), "router", "optim.freeze")
    assert all(name.endswith(".mlp.gate.weight") for name in found)
    assert matching(names(), "*.gate.*", "optim.freeze") != found


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("embedings", r"optim.freeze has 'embedings', but .* did you mean embeddings\?"),
        ("model.layers.77.*", "no parameter of that name"),
        ("zzzz", "words for kinds: embeddings, head"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(pattern: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        freeze_(tiny_model(), [pattern])


def test_a_tied_model_has_no_head_to_freeze() -> None:
    with pytest.raises(ConfigError, match="no parameter of that name"):
        freeze_(tiny_model(tie_word_embeddings=True), ["head"])


def test_frozen_parameters_are_not_in_the_optimizer() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimConfig(freeze=("embeddings", "*.layers.0.*")))
    held = {p for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        frozen = "word_embeddings" in name or ".layers.0." in name
        assert parameter.requires_grad != frozen, name
        assert (parameter in held) != frozen, name


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no parameter to train"):
        freeze_(tiny_model(), ["*"])


def test_the_bias_of_a_frozen_router_moves_unless_it_is_frozen_too() -> None:
    model = tiny_model()
    assert freeze_(model, ["router"]) == frozenset()
    frozen = freeze_(model, ["*.layers.1.mlp.gate.*"])
    assert frozen == {1}
    before = {i: model.model.layers[i].mlp.gate.expert_bias.clone() for i in (1, 2)}
    update_expert_biases(model, {1: torch.arange(16), 2: torch.arange(16)}, 0.1, frozen)
    assert torch.equal(model.model.layers[1].mlp.gate.expert_bias, before[1])
    assert not torch.equal(model.model.layers[2].mlp.gate.expert_bias, before[2])
    every = freeze_(model, ["expert_bias"])
    assert every == {i for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")}


def test_two_factors_for_one_parameter_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'norms=2' and '\*=3' both mean .*norm"):
        build_optimizer(tiny_model(), OptimConfig(lr_multipliers=("norms=2", "*=3")))


@pytest.mark.parametrize("entry", ["embeddings", "embeddings=", "=2", "head=0", "head=-1", "head=nan", "head=inf"])
def test_an_entry_that_is_no_pattern_and_factor_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match="an entry is pattern=factor"):
        OptimConfig(lr_multipliers=(entry,))
