"""What `config.json` says of an FP8 checkpoint (spec: checkpoint.md 3)."""

from typing import Any

from ling.config import ModelConfig


def quantization_config(model: ModelConfig) -> dict[str, Any]:
    """Return the published description of 128x128 blocks; with MTP layers, also what is not quantised.

    Without MTP it is the published one to the letter.
    """
    described: dict[str, Any] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    return described | ({"modules_to_not_convert": not_converted(model)} if model.num_nextn_predict_layers else {})


def not_converted(model: ModelConfig) -> list[str]:
    """Return the Linear modules that stay as they are, in every form that engines compare with.

    Some compare whole names, some ends, some any part: so `eh_proj` and its full name, but never `gate`, which is part
    of `gate_proj`.
    """
    L = model.num_hidden_layers
    return [
        "eh_proj",
        "lm_head",
        *(f"model.layers.{layer}.eh_proj" for layer in range(L, L + max(1, model.num_nextn_predict_layers))),
    ]
