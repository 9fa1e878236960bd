"""The published `config.json` as a transformers configuration.

Every spelling is resolved by `config/published.py` when a configuration is made, and every key is written out when
it is saved, so that transformers, vLLM and our own loader read the same network.
"""

from typing import TYPE_CHECKING, Any

from transformers.configuration_utils import PretrainedConfig

from ling.config.model import ModelConfig
from ling.config.published import ARCHITECTURE, MODEL_TYPE, PUBLISHED_KEYS, read_published, write_published

_ROPE_KEYS = ("rope_theta", "partial_rotary_factor", "rope_scaling")


class LingConfig(PretrainedConfig):
    """Configuration of a BailingMoeV2 network; attributes have the published names and meanings.

    Other keyword arguments are transformers' own. ConfigError for a value that cannot be meant.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ("past_key_values", "mtp_loss", "router_logits")
    ignore_keys_at_rope_validation = frozenset({"partial_rotary_factor"})
    rope_scaling = None  # an attribute of its own: in transformers 5 the name is an alias of `rope_parameters`

    if TYPE_CHECKING:  # where transformers sees annotations, it makes a dataclass
        rope_theta: float
        partial_rotary_factor: float
        rotary_dim: int | None
        rope_scaling: dict[str, Any] | None  # type: ignore[no-redef]

    def __init__(self, **kwargs: Any) -> None:
        given = {key: kwargs.pop(key) for key in PUBLISHED_KEYS & kwargs.keys()}
        dtype = given.pop("dtype", None) or given.pop("torch_dtype", None)
        architectures = given.pop("architectures", None) or [ARCHITECTURE]
        published = write_published(read_published({**given, "architectures": architectures}))
        for key in ("torch_dtype", "model_type", "architectures", "use_cache"):
            del published[key]
        for key, value in published.items():
            setattr(self, key, value)
        own = {key: value for key, value in published.items() if key not in _ROPE_KEYS}
        super().__init__(**{**own, **kwargs}, dtype=dtype, architectures=architectures)
        self.use_cache = kwargs.get("use_cache", True)  # transformers 5 drops it as a setting of generation

    def to_ling(self) -> ModelConfig:
        """Return the network that the attributes mean now; ConfigError if they contradict each other."""
        values: dict[str, Any] = {key: getattr(self, key) for key in PUBLISHED_KEYS & self.__dict__.keys()}
        values["rope_scaling"] = self.rope_scaling
        for key in ("dtype", "torch_dtype", "architectures"):
            values.pop(key, None)
        return read_published({"architectures": [ARCHITECTURE], **values})

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotation as transformers 5 spells it: base, rotated share and scaling in one dictionary."""
        given: dict[str, Any] = self.rope_scaling or {}
        scaling = {key: value for key, value in given.items() if key != "type"}
        own = {"rope_theta": self.rope_theta, "partial_rotary_factor": self.partial_rotary_factor}
        return {"rope_type": "default", **own, **scaling}

    @rope_parameters.setter
    def rope_parameters(self, value: dict[str, Any] | None) -> None:
        scaling = dict(value or {})
        self.rope_theta = scaling.pop("rope_theta", None) or self.rope_theta
        factor = scaling.pop("partial_rotary_factor", None) or self.partial_rotary_factor
        if factor != self.partial_rotary_factor:
            self.partial_rotary_factor, self.rotary_dim = factor, None
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        self.rope_scaling = None if kind == "default" else {"type": kind, **scaling}

    def to_dict(self) -> dict[str, Any]:
        """Return every attribute: the published keys, and transformers' own."""
        return {**super().to_dict(), **self._published()}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds: every published key, and what differs from transformers' defaults.

        A key left out because it is our default is another network elsewhere.
        """
        written = {**super().to_diff_dict(), **self._published()}
        written["torch_dtype"] = written.pop("dtype", None) or "bfloat16"
        return written

    def _published(self) -> dict[str, Any]:
        published = write_published(self.to_ling())
        del published["torch_dtype"]  # transformers calls it `dtype`, and means what the model was loaded in
        return {**published, "use_cache": self.use_cache}
