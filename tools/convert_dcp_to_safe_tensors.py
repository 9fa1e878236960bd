"""The published converter's command line, served by `ling convert`.

python tools/convert_dcp_to_safe_tensors.py --checkpoint-path DCP --target-path OUT [--force-fp8]
"""

import argparse
import sys
from pathlib import Path

from ling.cli.convert import run_conversion
from ling.errors import LingError


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a training checkpoint to Hugging Face safetensors.")
    parser.add_argument("--checkpoint-path", type=Path, required=True, help="checkpoint directory of one step")
    parser.add_argument("--target-path", type=Path, required=True, help="directory to write; must not exist")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--force-bf16", action="store_true", help="bfloat16 output (the default)")
    precision.add_argument("--force-fp8", action="store_true", help="FP8 blocks with float32 scales")
    parser.add_argument("--mtp-as-extra-layer", action="store_true", help="keep MTP layers; otherwise left out")
    parser.add_argument("--override-tokenizer-path", type=Path, help="tokenizer directory to put beside the weights")
    given = parser.parse_args()
    try:
        run_conversion(
            given.checkpoint_path,
            given.target_path,
            "float8" if given.force_fp8 else "bfloat16",
            "published",
            given.mtp_as_extra_layer,
            given.override_tokenizer_path,
            max_shard_gb=5.0,
            overwrite=False,
        )
    except LingError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


if __name__ == "__main__":
    main()
