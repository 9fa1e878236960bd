"""Handing a model over to vLLM: what its configuration must say and how it is started."""

from dataclasses import replace
from pathlib import Path
from shlex import quote

from ling.checkpoint.save import Precision
from ling.compat.serving import Serving, refuse_other_biases
from ling.config import ModelConfig

NAME = "vLLM"
VERSION = "0.32.0"
"""What the names and flags below were checked against."""
NEEDS_HF_CODE = False


def adapt(model: ModelConfig, precision: Precision) -> ModelConfig:
    """Return what vLLM can run of `model`: no MTP layer, which its loader refuses as an unknown name."""
    refuse_other_biases(model, NAME)
    if not model.n_group and model.num_moe_layers:
        model = replace(model, n_group=1, topk_group=1)  # one group of all: vLLM takes 0 for a number of groups
    return model.without_mtp()


def files(directory: str, model: ModelConfig) -> dict[str, str]:
    """Return the text of files that only this program reads, by name."""
    return {}


def launch_lines(directory: str, model: ModelConfig, serving: Serving) -> list[str]:
    """Return the commands that serve `directory`; its name and "auto" are both accepted as the model's."""
    name = Path(directory).resolve().name
    flags = [
        f"--served-model-name {quote(name)} auto",
        f"--tensor-parallel-size {serving.tensor_parallel_size}",
        f"--pipeline-parallel-size {serving.pipeline_parallel_size}",
        f"--max-model-len {serving.max_model_len or model.max_position_embeddings}",
        "--gpu-memory-utilization 0.90",
    ]
    return [" ".join([f"vllm serve {quote(directory)}", *flags])]


def notes(source: ModelConfig, model: ModelConfig, precision: Precision, serving: Serving) -> list[str]:
    """Return what a person should know before starting it."""
    said = [
        "install ling beside vLLM: its plugin gives vLLM the configuration class (if VLLM_PLUGINS is set, add ling)"
    ]
    if source.num_nextn_predict_layers:
        said.append("the MTP layer was left out: vLLM drafts with later models of the family only; SGLang takes it")
    return said
