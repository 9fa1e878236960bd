"""ling: the Ling 2.0 system (sparse MoE model, training, conversion, evaluation, serving) in one package."""

from ling.compat.registration import register_with_transformers
from ling.version import __version__

__all__ = ["__version__"]

register_with_transformers()
