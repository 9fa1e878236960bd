"""Handing a model over to SGLang: what its configuration must say and how it is started."""

from shlex import quote

from ling.checkpoint.save import Precision
from ling.compat.serving import Serving, refuse_other_biases
from ling.config import ModelConfig
from ling.errors import ConfigError

NAME = "SGLang"
VERSION = "0.5.23"
"""What the names and flags below were checked against, by reading and by running its loader; it needs a GPU."""
NEEDS_HF_CODE = False


def adapt(model: ModelConfig, precision: Precision) -> ModelConfig:
    """Return what SGLang can run of `model`: its draft has exactly one MTP layer, or there is none."""
    refuse_other_biases(model, NAME)
    if model.rope_scaling is not None and model.rope_scaling.attention_factor is not None:
        raise ConfigError(f"rope_scaling.attention_factor: {NAME} ignores it and would scale attention otherwise")
    return model if model.num_nextn_predict_layers == 1 else model.without_mtp()


def files(directory: str, model: ModelConfig) -> dict[str, str]:
    """Return the text of files that only this program reads, by name."""
    return {}


def launch_lines(directory: str, model: ModelConfig, serving: Serving) -> list[str]:
    """Return the commands that serve `directory`: as it is, and with drafts if it has an MTP layer."""
    line = " ".join(
        [
            f"python -m sglang.launch_server --model-path {quote(directory)}",
            "--host 127.0.0.1 --port 30000",
            f"--tensor-parallel-size {serving.tensor_parallel_size}",
            f"--pipeline-parallel-size {serving.pipeline_parallel_size}",
            f"--context-length {serving.max_model_len or model.max_position_embeddings}",
        ]
    )
    drafts = model.num_nextn_predict_layers and serving.pipeline_parallel_size == 1
    return [line, f"{line} --speculative-algorithm NEXTN"] if drafts else [line]


def notes(source: ModelConfig, model: ModelConfig, precision: Precision, serving: Serving) -> list[str]:
    """Return what a person should know before starting it."""
    said = ["install ling beside SGLang: its plugin gives SGLang the configuration class"]
    if source.num_nextn_predict_layers > model.num_nextn_predict_layers:
        said.append(f"the {source.num_nextn_predict_layers} MTP layers were left out: SGLang drafts with exactly one")
    if not model.num_nextn_predict_layers:
        return said
    if serving.pipeline_parallel_size > 1:
        said.append("no drafts: SGLang's speculative decoding is not offered here across pipeline stages")
        return said
    said.append(
        "the published SGLang patch (0.5.2) builds the draft layer dense and untrained where the first layers are "
        f"dense: answers stay right, hardly a draft is accepted. {VERSION} builds it with experts; or leave NEXTN out"
    )
    if precision == "float8":
        said.append(
            "the draft's eh_proj is stored in bfloat16 and listed in modules_to_not_convert; if the acceptance length "
            "stays near 1, set SGLANG_FP8_IGNORED_LAYERS=eh_proj"
        )
    return said
