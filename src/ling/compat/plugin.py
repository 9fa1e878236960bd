"""The entry point by which vLLM (`vllm.general_plugins`) and SGLang (`sglang.srt.plugins`) find our configuration.

Both know the network and neither knows the configuration's `model_type`. Their workers each read config.json again, so
the class must be known in every process: both call this there, wherever this package is installed beside them. No code
from a checkpoint runs.
"""


def register() -> None:
    """Make `config.json` of this family readable for transformers' AutoConfig."""
    from transformers import AutoConfig

    from ling.compat.hf.configuration import LingConfig

    AutoConfig.register(LingConfig.model_type, LingConfig, exist_ok=True)
