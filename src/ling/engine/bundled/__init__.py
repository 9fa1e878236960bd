"""The model that comes with the package: small, trained by `ling demo` on a longer recipe, with MTP and a tokenizer.

`PROVENANCE.json` beside it records the recipe, the seed, the commit and what was measured.
"""

from pathlib import Path


def bundled_directory() -> Path:
    """Return the checkpoint directory of the bundled model."""
    return Path(__file__).parent
