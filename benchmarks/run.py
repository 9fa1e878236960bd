"""`make bench`: run comparisons, all or those named, each in the environment it needs.

python -m benchmarks.run [NAME ...]
"""

import subprocess
import sys

from benchmarks.peers import run_in_peer

# Name: the peer environment, or None for this one.
BENCHMARKS: dict[str, str | None] = {
    "train_vs_transformers": "transformers",
    "train_vs_nemo": "nemo_automodel",
    "load_checkpoint": None,
    "write_gguf": None,
    "demo_seeds": None,
    "sft_embedded": None,
    "convert_full_size": None,
    "plan_memory": None,
    "newton_schulz": None,
    "data_loader": None,
    "ranks_memory": None,
    "cpu_kernels": None,
    "cpu_step": None,
    "head_shortlist": None,
    "read_pieces": None,
    "fp8_gemm_error": None,
    "fp8_loss_gap": None,
    "small_state": None,
    "engine_embedded": None,
    "start_time": None,
    "serve_vs_vllm": None,
    "cpu_vs_llamacpp": None,
}


def main() -> None:
    names = sys.argv[1:] or list(BENCHMARKS)
    if unknown := [n for n in names if n not in BENCHMARKS]:
        sys.exit(f"unknown benchmark {unknown[0]}; known: {', '.join(BENCHMARKS)}")
    codes = [run(name) for name in names]
    sys.exit(max(codes))


def run(name: str) -> int:
    module, environment = f"benchmarks.{name}", BENCHMARKS[name]
    if environment is not None:
        return run_in_peer(environment, module)
    return subprocess.run([sys.executable, "-m", module], check=False).returncode


if __name__ == "__main__":
    main()
