"""Names on a hub: what is downloaded, that it goes on, is verified and found again, and how each failure reads."""

import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from tests.hub.fake_hub import COMMIT, FakeHub, point_to, running

from ling.checkpoint import load_model, save_model
from ling.checkpoint.hub import PUBLISHED, download, resolve_checkpoint, verify_snapshot
from ling.errors import CheckpointError, ConfigError
from ling.testing.models import tiny_model

NAME = "owner/tiny"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in three shards with everything around it that repositories hold."""
    directory = tmp_path_factory.mktemp("repository") / "tiny"
    save_model(tiny_model(), directory, max_shard_bytes=220_000)
    assert len(list(directory.glob("*.safetensors"))) > 2
    for name in ("tokenizer.json", "generation_config.json"):
        (directory / name).write_text("{}", encoding="utf-8")
    for name in ("modeling_bailing_moe_v2.py", "pytorch_model.bin", "consolidated.safetensors", "README.md"):
        (directory / name).write_bytes(b"not wanted")
    return directory


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running(FakeHub(repository)) as fake:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        point_to(monkeypatch, fake.url)
        yield fake


def shards(hub: FakeHub) -> list[str]:
    return sorted(name for name in hub.files if name.startswith("model-"))


def test_only_what_is_needed_is_downloaded_and_it_loads(hub: FakeHub) -> None:
    directory, _ = download(NAME)
    expected = {"config.json", "tokenizer.json", "generation_config.json", "model.safetensors.index.json", *shards(hub)}
    assert {path.name for path in directory.iterdir()} == expected
    assert load_model(directory).config.num_experts == tiny_model().config.num_experts


def test_a_single_file_needs_no_index(hub: FakeHub) -> None:
    for name in [*shards(hub), "model.safetensors.index.json"]:
        del hub.files[name]
    hub.files["model.safetensors"] = b"weights"
    directory, _ = download(NAME)
    assert [path.name for path in directory.glob("*.safetensors")] == ["model.safetensors"]


def test_a_connection_that_breaks_goes_on_inside_the_file(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is held before it is written: 10 MB otherwise
    name = shards(hub)[1]
    hub.cut[name] = 5000
    directory, _ = download(NAME)
    assert (directory / name).read_bytes() == hub.files[name]
    assert len(hub.got(name)) == 2
    assert hub.got(name)[1].endswith("bytes=5000-")


def test_files_that_arrived_are_not_asked_for_again(hub: FakeHub) -> None:
    missing = shards(hub)[0]
    directory, _ = download(NAME)
    (directory / missing).resolve().unlink()
    (directory / missing).unlink()
    hub.requests.clear()
    download(NAME)
    assert len(hub.got(missing)) == 1
    assert not any(hub.got(name) for name in shards(hub)[1:])


def test_contents_are_verified_with_and_without_the_hub(hub: FakeHub) -> None:
    directory, listing = download(NAME)
    assert verify_snapshot(directory, listing) == len(listing) == len(list(directory.iterdir()))
    _, from_cache = download(NAME, offline=True)
    assert verify_snapshot(directory, from_cache) == len(listing)


@pytest.mark.parametrize("name", ["model-00002-of-", "config.json"])
@pytest.mark.parametrize("offline", [False, True])
def test_a_damaged_file_in_the_cache_is_found(hub: FakeHub, name: str, offline: bool) -> None:
    directory, _ = download(NAME)
    (damaged,) = (path for path in directory.iterdir() if path.name.startswith(name))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.resolve().write_bytes(content)
    found, listing = download(NAME, offline=offline)
    with pytest.raises(CheckpointError, match=rf"{damaged.name} is not what the hub has: delete .*blobs.* and run"):
        verify_snapshot(found, listing)
    damaged.resolve().unlink()
    damaged.unlink()
    found, listing = download(NAME)
    assert verify_snapshot(found, listing)


def test_a_file_of_another_size_is_found_at_once(hub: FakeHub) -> None:
    directory, _ = download(NAME)
    file = directory / shards(hub)[0]
    file.resolve().write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"has [\d,]+ bytes, the hub's [\d,]+: delete"):
        download(NAME)


def test_a_name_is_found_in_the_cache_without_the_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, _ = download(NAME)
    hub.requests.clear()
    assert resolve_checkpoint(NAME) == directory
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_checkpoint(Path(NAME)) == directory
    assert download(NAME)[0] == directory


def test_a_name_that_is_not_there_is_downloaded(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert resolve_checkpoint(NAME).name == COMMIT
    assert "owner/tiny is no directory here: downloading it" in caplog.text


def test_half_a_model_in_the_cache_does_not_count(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, _ = download(NAME)
    (directory / shards(hub)[0]).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="is neither a directory here nor in the hub's cache"):
        resolve_checkpoint(NAME)
    with pytest.raises(CheckpointError, match="is incomplete, it lacks model-00001"):
        download(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert (resolve_checkpoint(NAME) / shards(hub)[0]).is_file()


def test_directories_win_and_paths_are_no_names(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/tiny").mkdir(parents=True)
    for path in ("owner/tiny", "owner/other", "no/such/path", "/none", "..", ""):
        assert resolve_checkpoint(path) == Path(path)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "revision", "says"),
    [
        ("owner/none", None, "is neither a directory here nor a public model on http://127.0.0.1"),
        ("owner/gated", None, "is gated: accept its terms"),
        (NAME, "v9", "has no such revision"),
    ],
)
def test_refusals_of_the_hub_are_one_line(hub: FakeHub, name: str, revision: str | None, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        download(name, revision=revision)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.pop("config.json"), r"has no config\.json"),
        (
            lambda f: f.pop("model-00001-of-00003.safetensors"),
            "lacks model-00001-of-00003.safetensors, which its index",
        ),
        (lambda f: f.update({"model.safetensors.index.json": b"{}"}), "has no weight_map"),
        (
            lambda f: f.update({"model.safetensors.index.json": b'{"weight_map": {"a": "../b.safetensors"}}'}),
            "no weight",
        ),
        (lambda f: [f.pop(n) for n in list(f) if "safetensors" in n], r"ling reads no pickles, such as \.bin"),
    ],
    ids=["no config", "shard lost", "empty index", "index that points outside", "pickles only"],
)
def test_repositories_that_hold_no_checkpoint_are_refused(hub: FakeHub, change, says: str) -> None:
    assert len(shards(hub)) == 3
    change(hub.files)
    with pytest.raises(CheckpointError, match=says):
        download(NAME)


def test_no_network_fails_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    point_to(monkeypatch, "http://127.0.0.1:1")
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"cannot download owner/tiny from http://127\.0\.0\.1:1 \(.*refused"):
        resolve_checkpoint(NAME)
    assert time.monotonic() - start < 20


def test_part_of_a_model_without_its_index_does_not_count(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, _ = download(NAME)
    (directory / "model.safetensors.index.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"is incomplete, it lacks model\.safetensors\.index\.json"):
        download(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert (resolve_checkpoint(NAME) / "model.safetensors.index.json").is_file()


def test_a_damaged_index_in_the_cache_says_what_to_delete(hub: FakeHub) -> None:
    directory, _ = download(NAME)
    index = directory / "model.safetensors.index.json"
    index.resolve().write_bytes(b"{")
    for way in (download, resolve_checkpoint):
        with pytest.raises(CheckpointError, match=rf"not valid JSON.*; delete {index.resolve()} and run the same"):
            way(NAME)
    index.resolve().unlink()
    index.unlink()
    found, listing = download(NAME)
    assert verify_snapshot(found, listing)


def test_a_killed_download_goes_on(hub: FakeHub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ling", "download", NAME]
    given = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
    hub.slow = shards(hub)[1]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=given)
    deadline = time.monotonic() + 30
    while not hub.got(hub.slow) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert hub.got(hub.slow)
    cut, hub.slow = hub.slow, ""
    done = subprocess.run([*command, "--verify"], capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stderr
    assert len(hub.got(cut)) == 2
    assert "7 files are what the hub has" in done.stderr


def test_the_client_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for way in (download, resolve_checkpoint):
        with pytest.raises(ConfigError, match="need its client: pip install huggingface_hub"):
            way(NAME)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Ling-mini-2.0", "did you mean inclusionAI/Ling-mini-2.0?"),
        ("inclusionAI/Ling-mini-base-2.0/5T", "did you mean inclusionAI/Ling-mini-base-2.0-5T?"),
        ("??", "such as inclusionAI/Ling-mini-2.0"),
    ],
)
def test_a_name_without_an_owner_gets_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        download(name)
    assert hint in str(caught.value)
    assert len(PUBLISHED) == 9


def test_the_command_honours_the_environment_of_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ling", "download", NAME, "--verify"]
    given = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
    done = subprocess.run(command, capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/home/hub/models--owner--tiny/snapshots/{COMMIT}\n"
    assert "7 files are what the hub has" in done.stderr


# ---- ModelScope, through a stand-in for its library ----


@pytest.fixture
def scope(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """Pretend that `modelscope` is installed, its server holds `repository` and its cache is empty."""
    with running(FakeHub(repository)) as fake:
        snapshot = tmp_path / "models/owner--tiny/snapshots/master"

        def snapshot_download(name, *, revision=None, allow_patterns=None, local_files_only=False):
            if local_files_only and not snapshot.is_dir():
                raise RuntimeError("Cannot find cached snapshot")
            snapshot.mkdir(parents=True, exist_ok=True)
            for path in () if local_files_only else allow_patterns:
                (snapshot / path).write_bytes(fake.files[path])
            return str(snapshot)

        class HubApi:
            def list_repo_files(self, name, kind, *, revision=None):
                if name != NAME:
                    raise RuntimeError("no such\nmodel")
                assert kind == "model"
                files = fake.files.items()
                return [
                    types.SimpleNamespace(path=p, size=len(c), type="blob", sha256=hub_sha(fake, p)) for p, c in files
                ]

        library, api = types.ModuleType("modelscope"), types.ModuleType("modelscope_hub")
        library.snapshot_download, api.HubApi = snapshot_download, HubApi
        api.HubConfig = lambda: types.SimpleNamespace(endpoint=fake.url)
        library.__spec__ = types.SimpleNamespace()
        monkeypatch.setitem(sys.modules, "modelscope", library)
        monkeypatch.setitem(sys.modules, "modelscope_hub", api)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield fake.files


def hub_sha(fake: FakeHub, name: str) -> str | None:
    return fake.told(name, fake.files[name], "", "sha256").get("lfs", {}).get("sha256")


def test_modelscope_gives_the_same_files_and_is_found_again(
    scope: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    directory, listing = download(NAME, hub="modelscope")
    assert "pytorch_model.bin" in scope
    assert {path.name for path in directory.iterdir()} == {name for name in scope if name in listing}
    assert verify_snapshot(directory, listing) == 4  # three shards and the tokenizer have hashes there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_checkpoint(NAME) == directory
    assert json.loads((directory / "config.json").read_text(encoding="utf-8"))["vocab_size"] == 128


def test_what_modelscope_refuses_is_one_line(scope: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="is neither a directory here nor in the hub's cache"):
        download(NAME, hub="modelscope")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match=r"cannot download owner/none from http.* \(no such model\)"):
        download("owner/none", hub="modelscope")
    sys.modules["modelscope_hub"].HubConfig = lambda: types.SimpleNamespace(endpoint="http://127.0.0.1:1")
    with pytest.raises(CheckpointError, match=r"http://127\.0\.0\.1:1 cannot be reached"):
        download(NAME, hub="modelscope")


def test_modelscope_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(CheckpointError, match=r"pip install 'ling\[modelscope\]'"):
        download(NAME, hub="modelscope")
    with pytest.raises(ConfigError, match="--from github is not known; use hf, modelscope"):
        download(NAME, hub="github")
