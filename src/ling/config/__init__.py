"""The typed description of everything. Never imports torch.

`recipe` (overlays, YAML, validation) needs pydantic and is imported on its own, so that the model runs where
pydantic is not installed.
"""

from ling.config.model import ModelConfig, RopeScaling
from ling.config.presets import PRESETS, preset
from ling.config.published import read_published, write_published

__all__ = ["PRESETS", "ModelConfig", "RopeScaling", "preset", "read_published", "write_published"]
