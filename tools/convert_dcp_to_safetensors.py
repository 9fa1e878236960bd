"""The published converter's command line, served by the code of `ling convert`.

python tools/convert_dcp_to_safetensors.py --checkpoint-path DCP --target-path OUT [--force-fp8] [--mtp-as-extra-layer]

Flags do what their documentation says, also where the published script does not: --force-bf16 is not always on, so
without a --force flag a run trained in FP8 exports FP8; --mtp-path works; the tokenizer need not be given. As there,
--force-fp8 wins over --force-bf16, and MTP layers are left out unless one of the two --mtp flags is given.
"""

import argparse
import sys
from pathlib import Path

from ling.checkpoint.megatron import find_iteration, read_args
from ling.cli.app import run
from ling.cli.convert import Conversion, run_conversion


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a training checkpoint to Hugging Face safetensors.")
    parser.add_argument("--checkpoint-path", type=Path, required=True, help="checkpoint directory of one step")
    parser.add_argument("--target-path", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument("--megatron-path", type=Path, help="accepted; nothing of Megatron is needed or run")
    parser.add_argument("--force-bf16", action="store_true", help="bfloat16, however the run was trained")
    parser.add_argument("--force-fp8", action="store_true", help="FP8 blocks with float32 scales")
    mtp = parser.add_mutually_exclusive_group()
    mtp.add_argument("--mtp-as-extra-layer", action="store_true", help="MTP layers behind the others")
    mtp.add_argument("--mtp-path", type=Path, help="MTP layers as a model of their own, in this directory")
    parser.add_argument("--override-tokenizer-path", type=Path, help="tokenizer to put beside the weights")
    given = parser.parse_args()
    run_conversion(
        Conversion(
            source=given.checkpoint_path,
            target=given.target_path,
            dtype=precision(given),
            mtp="keep" if given.mtp_as_extra_layer else "separate" if given.mtp_path else "drop",
            mtp_target=given.mtp_path,
            tokenizer=given.override_tokenizer_path,
        )
    )


def precision(given: argparse.Namespace) -> str:
    """Return what was forced, or what the run was trained in."""
    if given.force_fp8 or given.force_bf16:
        return "float8" if given.force_fp8 else "bfloat16"
    iteration = find_iteration(given.checkpoint_path)
    trained_in_fp8 = iteration is not None and bool(read_args(iteration).get("fp8"))
    return "float8" if trained_in_fp8 else "bfloat16"


if __name__ == "__main__":
    run(main, Path(sys.argv[0]).name)
