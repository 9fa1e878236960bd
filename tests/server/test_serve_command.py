"""`ling serve`: what its flags mean, here and for the programs it may hand over to."""

import shlex
import socket
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from ling.cli.app import app
from ling.cli.serve import command, elsewhere, start
from ling.cli.serve.flags import NO_EFFECT, all_flags
from ling.cli.serve.translate import engine_config, server_settings
from ling.errors import CheckpointError, ConfigError, LingError

VLLM_LINE = (
    "inclusionAI/Ling-mini-2.0 --tensor-parallel-size 2 --pipeline-parallel-size 1 --use-v2-block-manager "
    "--gpu-memory-utilization 0.90"
)
SGLANG_LINE = "--model-path X --host 0.0.0.0 --port 30000 --trust-remote-code --attention-backend fa3"


@pytest.fixture
def parse(monkeypatch):
    """Parse a command line; return the options."""
    given = {}

    def stop(options):
        given.update(vars(options))
        raise LingError("parsed")

    monkeypatch.setattr(command, "_one_model", stop)

    def run(line):
        given.clear()
        result = CliRunner().invoke(app, ["serve", *shlex.split(line)])
        assert str(result.exception) == "parsed", result.output
        return SimpleNamespace(**given)

    return run


@pytest.fixture
def here(monkeypatch, engine, tmp_path):
    """Run a command line to where it would serve; return what it said and the service."""
    seen = SimpleNamespace(said="", service=None)
    monkeypatch.setattr(start, "_open", lambda options, directory, say: (start._share(options, _CPU, say), engine)[1])
    monkeypatch.setattr(start, "_check_sizes", lambda options, directory: None)
    monkeypatch.setattr(start, "bind", lambda settings: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(start, "run", lambda service, taken, ready: setattr(seen, "service", service))

    def run(line):
        result = CliRunner().invoke(app, ["serve", *shlex.split(line)])
        seen.said = result.stderr
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return seen

    return run


_CPU = SimpleNamespace(type="cpu")


def test_sglangs_published_command_serves_here_and_says_what_has_no_effect(here, tmp_path):
    model = tmp_path / "X"
    model.mkdir()
    seen = here(SGLANG_LINE.replace("X", str(model)))
    settings = seen.service.settings
    assert (settings.host, settings.port, settings.served_names) == ("0.0.0.0", 30000, ("X",))
    assert "--attention-backend has no effect" in seen.said
    assert "--trust-remote-code has no effect: code from a checkpoint is never run" in seen.said
    assert "--api-key asks for a key" in seen.said
    assert "drafting:" in seen.said
    assert "loaded in" in seen.said


def test_vllms_published_command_needs_another_program_for_two_gpus():
    result = CliRunner().invoke(app, ["serve", *VLLM_LINE.split()])
    assert isinstance(result.exception, ConfigError)
    assert "--tensor-parallel-size 2" in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.fixture
def handed(monkeypatch, tmp_path):
    """Pretend that both programs are there; return what would be started, for a line."""
    monkeypatch.setattr(elsewhere, "is_installed", lambda program: True)
    monkeypatch.setattr(elsewhere, "become", lambda command, environment: started.append((command, environment)))
    monkeypatch.setattr(command, "_need_extra", lambda: (_ for _ in ()).throw(LingError("here")))
    started: list = []

    def run(line):
        started.clear()
        result = CliRunner().invoke(app, ["serve", *shlex.split(line), "--export-to", str(tmp_path / "exported")])
        if not started:
            raise result.exception or AssertionError(result.output)
        return SimpleNamespace(command=started[0][0], environment=started[0][1], said=result.stderr)

    return run


def test_two_gpus_are_handed_to_vllm_with_the_checkpoint_as_it_loads_it(handed, tmp_path):
    seen = handed(
        "-tp 2 --use-v2-block-manager --gpu-memory-utilization 0.8 --port 9000 --api-key one --api-key two "
        "--served-model-name own --max-model-len 256 --no-enable-prefix-caching --seed 4"
    )
    line = " ".join(seen.command)
    assert seen.command[:3] == ["vllm", "serve", str(tmp_path / "exported")]
    for part in ("--tensor-parallel-size 2", "--max-model-len 256", "--gpu-memory-utilization 0.8", "--port 9000",
                 "--api-key one two", "--served-model-name own auto", "--no-enable-prefix-caching", "--seed 4",
                 "--tool-call-parser hermes"):  # fmt: skip
        assert part in line, line
    assert line.index("utilization 0.90") < line.index("utilization 0.8 ")  # the later one counts
    assert (tmp_path / "exported" / "config.json").is_file()
    assert "--api-key KEY KEY" in seen.said
    assert "one two" not in seen.said


def test_sglang_gets_its_own_names(handed):
    line = " ".join(
        handed(
            "--engine sglang -tp 2 --context-length 128 --mem-fraction-static 0.7 --disable-radix-cache --page-size 64 "
            "--speculative-algorithm NEXTN --speculative-num-steps 2 --attention-backend fa3 --batch-invariant"
        ).command
    )
    assert "-m sglang.launch_server" in line
    for part in ("--context-length 128", "--mem-fraction-static 0.7", "--disable-radix-cache", "--page-size 64",
                 "--speculative-algorithm NEXTN", "--speculative-num-draft-tokens 3", "--speculative-num-steps 2",
                 "--attention-backend fa3", "--enable-deterministic-inference"):  # fmt: skip
        assert part in line, line


def test_what_another_program_does_not_have_is_refused_by_name(handed):
    for flag, line in {
        "--request-timeout": "--engine vllm --request-timeout 5",
        "--kv-cache-gib": "--engine sglang --kv-cache-gib 1",
        "--api-key-file": "--engine vllm --api-key-file keys",
        "--allowed-origins": "--engine sglang --allowed-origins https://a.example",
        "MTP": '--engine vllm --speculative-config {"method":"mtp"}',
    }.items():
        line = line.replace('{"method":"mtp"}', '\'{"method": "mtp"}\'')
        with pytest.raises(ConfigError, match=flag):
            handed(line)


def test_every_second_name_means_the_same(parse):
    values = {int: "7", float: "0.5", str: "{}", list[str]: "x"}
    for flag in all_flags():
        if flag.kind is bool or len(flag.spellings) == 1:
            continue
        told = [getattr(parse(f"{name} {values[flag.kind]}"), flag.name) for name in flag.spellings]
        assert told[0] != flag.default, flag.name
        assert all(value == told[0] for value in told), flag.name
    assert parse("--model m").model_path == parse("--model-path m").model_path == parse("m").model
    off = [parse(name).enable_prefix_caching for name in ("--no-enable-prefix-caching", "--disable-radix-cache")]
    assert off == [False, False]


def test_flags_become_what_the_engine_takes(parse):
    options = parse(
        "--max-model-len 100 --max-num-seqs 3 --max-num-batched-tokens 64 --max-num-queued-reqs 9 --block-size 32 "
        "--kv-cache-gib 0.5 --kv-cache-dtype fp8_e4m3 --disable-radix-cache --seed 3 --batch-invariant "
        '--speculative-config \'{"method": "ngram", "num_speculative_tokens": 5}\''
    )
    config = engine_config(options)
    assert (config.max_model_len, config.max_num_seqs, config.max_num_batched_tokens) == (100, 3, 64)
    assert (config.max_num_queued, config.block_size, config.kv_cache_gib, config.kv_cache_dtype) == (9, 32, 0.5, "fp8")
    assert (config.enable_prefix_caching, config.seed, config.batch_invariant) == (False, 3, True)
    assert (config.drafting, config.num_speculative_tokens) == ("ngram", 5)
    nextn = engine_config(parse("--speculative-algorithm NEXTN --speculative-num-draft-tokens 4"))
    assert (nextn.drafting, nextn.num_speculative_tokens) == ("mtp", 3)


def test_what_a_cache_holds_is_called_as_each_program_calls_it(parse):
    def handed_over(program, name):
        flags = elsewhere.translated(program, parse(f"m --kv-cache-dtype {name}"))
        return flags[flags.index("--kv-cache-dtype") + 1]

    for name, ours, vllm, sglang in (
        ("bfloat16", "bfloat16", "bfloat16", "bf16"),
        ("bf16", "bfloat16", "bfloat16", "bf16"),
        ("fp8", "fp8", "fp8", "fp8_e4m3"),
        ("float16", "float16", "float16", None),
    ):
        assert engine_config(parse(f"m --kv-cache-dtype {name}")).kv_cache_dtype == ours
        assert handed_over("vllm", name) == vllm
        if sglang is not None:
            assert handed_over("sglang", name) == sglang
    with pytest.raises(ConfigError, match="float16: SGLang knows auto, bfloat16 and fp8"):
        handed_over("sglang", "float16")


def test_flags_become_what_the_server_takes(parse, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# mine\nsecond\n\nthird\n")
    options = parse(
        f"--api-key first --api-key-file {keys} --allowed-origins '[\"https://a.example\"]' --request-timeout 5 "
        "--allowed-origins https://b.example --metrics-compat vllm --shutdown-timeout 2 --allowed-hosts ling.example"
    )
    settings = server_settings(options, name="m")
    assert settings.api_keys == ("first", "second", "third")
    assert settings.allowed_origins == ("https://a.example", "https://b.example")
    assert (settings.request_seconds, settings.shutdown_seconds, settings.vllm_metrics) == (5, 2, True)
    assert settings.allowed_hosts == ("ling.example",)


@pytest.mark.parametrize(
    "line",
    [
        "--chat-template x.jinja", "--tool-call-parser ling3", "--reasoning-parser x", "--dtype int3", "--device tpu",
        "--quantization awq", "--kv-cache-dtype int4", "--metrics-compat x", "--speculative-algorithm EAGLE",
        "--speculative-config [1]", "--speculative-config {", "--speculative-config '{\"method\": \"mtp\", \"x\": 1}'",
        "--speculative-num-steps 3", "--speculative-eagle-topk 4 --speculative-algorithm NEXTN", "--engine tgi",
        "--engine vllm", "--engine ling -tp 2", "-tp 0", "--hf-overrides 5", "--allowed-origins evil.example",
        "--api-key-file /nowhere/keys", "--api-key 'a b\n'", "--port 70000", "--request-timeout -1", "a --model b",
        "--gpu-memory-utilization 3", "--served-model-name ''", "--max-num-seqs 0", "/nowhere/at/all",
        "--hf-overrides '{\"rope_thet\": 5}'", "--weight-pages x", "--quantization int4,heads=int8",
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(line, monkeypatch):
    monkeypatch.setattr(start, "load", lambda *a, **k: (_ for _ in ()).throw(AssertionError("loaded")))
    monkeypatch.setattr(elsewhere, "is_installed", lambda program: False)
    result = CliRunner().invoke(app, ["serve", *shlex.split(line)])
    assert isinstance(result.exception, LingError), (result.exception, result.output)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--max-num-seqs 0", "--max-num-seqs must be at least 1"),
        ("--max-num-queued-reqs 0", "--max-num-queued-reqs must be at least 1"),
        ("--request-timeout -1", "--request-timeout must be a number of seconds"),
        ("--port 70000", "--port must lie between 0 and 65535"),
        ("--kv-cache-gib -1", "--kv-cache-gib must not be negative"),
        ("--kv-cache-gib inf", "--kv-cache-gib must be finite"),
        ("--host ''", "--host must not be empty; 0.0.0.0 listens at every address"),
        ("--quantization fp8", "--quantization fp8 keeps FP8 weights as they are stored, and "),
        ("--model ''", "the model's name is empty"),
        ("--max-num-batched-tokens 5", "--max-num-batched-tokens 5 is too few for --max-num-seqs 64"),
        ("--max-model-len 513", "--max-model-len 513 exceeds the model's context of 512"),
        (
            "--max-model-len 512 --kv-cache-gib 0.001",
            "--kv-cache-gib 0.001 is 26; lower --max-model-len, or give --kv-",
        ),
        ("--speculative-algorithm NEXTN --speculative-num-steps 40", "--speculative-num-steps must lie between 0 and"),
        (
            "--speculative-algorithm NEXTN --speculative-num-draft-tokens 0",
            "--speculative-num-draft-tokens must lie between 1 and 17, got 0",
        ),
    ],
)
def test_a_refusal_names_the_flags_and_comes_before_weights_are_read(line, said, monkeypatch):
    monkeypatch.setattr(start, "load", lambda *a, **k: (_ for _ in ()).throw(AssertionError("loaded")))
    result = CliRunner().invoke(app, ["serve", "--device", "cpu", *shlex.split(line)])
    assert isinstance(result.exception, ConfigError), (result.exception, result.output)
    assert said in str(result.exception)


def test_what_is_said_at_the_start_names_flags(here, monkeypatch):
    monkeypatch.setattr(start, "describe", lambda engine: ["context 64, lowered from 512; kv_cache_gib 1 would"])
    assert "lowered from 512; --kv-cache-gib 1 would" in here("").said


def test_a_port_in_use_is_said_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(command, "_resolve", lambda model: (_ for _ in ()).throw(AssertionError("resolved")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(app, ["serve", "--port", str(taken.getsockname()[1])])
    assert "is in use; stop what uses it or choose another --port" in str(result.exception)


@pytest.mark.parametrize("variable", ["VLLM_USE_MODELSCOPE", "SGLANG_USE_MODELSCOPE"])
def test_the_two_variables_choose_the_hub(monkeypatch, variable):
    asked = []

    def download(name, *, hub="hf", **_):
        asked.append((name, hub))
        raise CheckpointError("no network")

    monkeypatch.setattr("ling.checkpoint.hub.download", download)
    monkeypatch.setattr("ling.checkpoint.hub.resolve.download", download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    for value, hub in (("True", "modelscope"), ("false", None)):
        asked.clear()
        monkeypatch.setenv(variable, value)
        monkeypatch.setattr("ling.checkpoint.hub.resolve_checkpoint", lambda name: download(name))
        result = CliRunner().invoke(app, ["serve", "owner/name", "--port", "0"])
        assert isinstance(result.exception, CheckpointError)
        assert asked == [("owner/name", hub or "hf")]


def test_without_the_extra_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = CliRunner().invoke(app, ["serve"])
    assert str(result.exception) == "ling serve needs uvicorn: pip install 'ling[serve]'"


def test_flags_without_effect_say_so(here):
    flags = " ".join(f"--{name.replace('_', '-')}" + (" x" if "backend" in name else "") for name in NO_EFFECT)
    seen = here(f"{flags} --gpu-memory-utilization 0.9")
    for name in NO_EFFECT:
        assert f"note: --{name.replace('_', '-')} has no effect" in seen.said
    assert "--gpu-memory-utilization has no effect on a CPU" in seen.said
    assert seen.service.settings.served_names == ("ling-bundled",)
