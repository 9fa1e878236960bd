"""What modules promise beside their mathematics: names, dtypes, initial values."""

import pytest
import torch

from ling.checkpoint.names import published_pieces
from ling.model import CausalLM, init_weights
from ling.model.batch import pack
from ling.testing.models import tiny_config, tiny_model


@pytest.mark.parametrize(
    "cast", [lambda m: m.bfloat16(), lambda m: m.to(torch.float16), lambda m: m.to("cpu", torch.bfloat16)]
)
def test_no_cast_touches_the_router(cast) -> None:
    model = tiny_model()
    gate = model.model.layers[1].mlp.gate
    before = gate.expert_bias.clone(), gate.weight.clone()
    cast(model)
    assert torch.equal(gate.expert_bias, before[0])
    assert torch.equal(gate.weight, before[1])
    assert model.model.layers[1].mlp.experts.down_proj.dtype != torch.float32


def test_a_router_still_moves_between_devices() -> None:
    model = tiny_model().to("meta")
    assert model.model.layers[1].mlp.gate.weight.is_meta


def test_every_parameter_has_a_published_name_and_the_other_way_round() -> None:
    config = tiny_config(num_nextn_predict_layers=2)
    with torch.device("meta"):
        state = CausalLM(config).state_dict()
    filled = {name: torch.zeros(t.shape) for name, t in state.items()}
    for piece in published_pieces(config):
        part = piece.part_of(filled[piece.parameter])
        assert part.shape == piece.shape, piece
        part += 1
    for name, count in filled.items():
        assert bool((count == 1).all()), f"{name}: some element has no published tensor, or two"


def test_initial_weights() -> None:
    config = tiny_config(initializer_range=0.02, hidden_size=128)
    model = init_weights(CausalLM(config), torch.Generator().manual_seed(3))
    layer = model.model.layers[1]
    assert layer.mlp.experts.gate_up_proj.std().item() == pytest.approx(0.02, rel=0.02)
    assert layer.mlp.gate.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert bool((layer.input_layernorm.weight == 1).all())
    assert bool((layer.mlp.gate.expert_bias == 0).all())
    assert bool((model.model.word_embeddings.weight[config.pad_token_id] == 0).all())
    again = init_weights(CausalLM(config), torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_padding_row_gets_no_gradient() -> None:
    model = tiny_model()
    tokens, positions, batch = pack([[0, 5, 6]])
    model(tokens, positions, batch).hidden.sum().backward()
    gradient = model.model.word_embeddings.weight.grad
    assert gradient is not None
    assert gradient[0].abs().max() == 0
    assert gradient[5].abs().max() > 0


def test_recomputing_a_layer_leaves_counts_alone() -> None:
    """Counts are outputs, so a second forward under activation recomputation cannot count tokens twice."""
    model = tiny_model()
    first = model(*pack([[5, 6, 7]])).routings[1].counts
    second = model(*pack([[5, 6, 7]])).routings[1].counts
    assert torch.equal(first, second)
    assert first.sum() == 3 * model.config.num_experts_per_tok
