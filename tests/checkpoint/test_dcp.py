"""Training checkpoints: what comes back, conversion, and what a hostile or damaged one cannot do."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from ling.checkpoint import load_model
from ling.checkpoint.convert import to_safetensors
from ling.checkpoint.dcp import DcpSource, save_dcp
from ling.checkpoint.layout import MODEL_PREFIX
from ling.checkpoint.pieces import open_pieces
from ling.checkpoint.restricted_pickle import read_dcp_metadata
from ling.checkpoint.save import ExportFormat
from ling.config import write_published
from ling.errors import CheckpointError
from ling.model import CausalLM
from ling.testing.models import tiny_model


@pytest.fixture
def model() -> CausalLM:
    return tiny_model()


@pytest.fixture
def saved(model: CausalLM, tmp_path: Path) -> Path:
    def add_tokenizer(directory: Path) -> None:
        (directory / "tokenizer").mkdir()
        (directory / "tokenizer/tokenizer.json").write_text("{}")

    tensors = {MODEL_PREFIX + name: value for name, value in model.state_dict().items()}
    tensors["optim/some/moment"] = torch.arange(3.0)
    save_dcp(
        tmp_path / "step_1",
        tensors,
        {"model": write_published(model.config), "step": 1},
        finish=add_tokenizer,
    )
    return tmp_path / "step_1"


def test_tensors_and_facts_come_back(saved: Path) -> None:
    source = DcpSource(saved)
    assert source.facts()["step"] == 1
    assert source.read("optim/some/moment").tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match="lacks tensor optim/other"):
        source.read("optim/other")
    with pytest.raises(
        CheckpointError, match=r"is \(3,\) in .*, here it is \(4,\): the checkpoint is of another model"
    ):
        source.load_into({"optim/some/moment": torch.zeros(4)})


def test_conversion_to_float32_loses_nothing(saved: Path, model: CausalLM, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    export = ExportFormat(precision="float32")
    to_safetensors(open_pieces(saved), tmp_path / "hf", export, progress=lambda done, total: seen.append((done, total)))
    back = load_model(tmp_path / "hf").state_dict()
    assert all(torch.equal(back[k], v) for k, v in model.state_dict().items())
    assert (tmp_path / "hf/tokenizer.json").exists()
    assert seen[-1][0] == seen[-1][1] == len(seen)


@pytest.mark.parametrize(
    ("flag", "dtype"),
    [pytest.param("--force-bf16", "bfloat16", marks=pytest.mark.slow), ("--force-fp8", "float8_e4m3fn")],
)
def test_the_published_command_line(saved: Path, tmp_path: Path, flag: str, dtype: str) -> None:
    script = Path(__file__).parents[2] / "tools/convert_dcp_to_safe_tensors.py"
    paths = ["--checkpoint-path", str(saved), "--target-path", str(tmp_path / "deep/down/hf")]
    done = subprocess.run(
        [sys.executable, str(script), *paths, flag, "--mtp-as-extra-layer"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kept = load_model(tmp_path / "deep/down/hf", fp8="keep" if "fp8" in flag else "dequantize")
    assert str(kept.model.layers[1].mlp.experts.down_proj.dtype) == f"torch.{dtype}"
    assert kept.config.num_nextn_predict_layers == 1
    again = subprocess.run([sys.executable, str(script), *paths, flag], capture_output=True, text=True)
    assert again.returncode != 0
    assert "exists already" in again.stderr.splitlines()[-1]


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_metadata_that_wants_to_run_something_is_refused(saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "it-ran"
    (saved / ".metadata").write_bytes(pickle.dumps(Hostile(witness)))
    with pytest.raises(CheckpointError, match=r"is not safe to read: its metadata asks for .*Path"):
        DcpSource(saved)
    assert not witness.exists()


def test_byte_entries_are_not_unpickled(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"thing": {"a", "set"}}, checkpoint_id=tmp_path / "c", no_dist=True)
    source = DcpSource(tmp_path / "c")
    with pytest.raises(CheckpointError, match="lacks tensor thing"):
        source.read("thing")


def test_metadata_cannot_point_outside_its_directory(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    for stored in metadata.storage_data.values():
        stored.relative_path = "../../elsewhere"
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="points outside its directory"):
        DcpSource(saved)


def test_damage_is_named(saved: Path) -> None:
    (data,) = saved.glob("*.distcp")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"a \.distcp file is missing or damaged .* copy the checkpoint again"):
        DcpSource(saved).read(MODEL_PREFIX + "lm_head.weight")
    (saved / ".metadata").write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match="is damaged"):
        DcpSource(saved)
    (saved / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"is not a training checkpoint: it has no \.metadata"):
        DcpSource(saved)


def test_metadata_of_torch_round_trips_through_the_restricted_reader(saved: Path) -> None:
    metadata = DcpSource(saved)._reader.read_metadata()
    assert isinstance(metadata, Metadata)
    assert all(isinstance(index, MetadataIndex) for index in metadata.storage_data)


def test_facts_that_are_not_json_are_named(saved: Path) -> None:
    (saved / "training.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"training\.json is not valid JSON"):
        DcpSource(saved).facts()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file size fails as a full disk does: a write takes only part of its bytes."""
    code = f"""
import resource, signal, torch
from pathlib import Path
from ling.checkpoint.dcp import save_dcp
from ling.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_dcp(Path({str(tmp_path)!r}, "step_1"), {{"w": torch.zeros(1_000_000)}}, {{}})
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {tmp_path / 'step_1'}: "), done.stdout + done.stderr
    assert done.stdout.endswith("; nothing was left there\n")
    assert list(tmp_path.iterdir()) == []


class ByName:
    """Pickles as Python 3.11.0 to 3.11.3 pickle a member of an enum: by a call of `getattr`."""

    def __init__(self, owner: object, name: str) -> None:
        self.call = (owner, name)

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, self.call


def test_members_of_enums_may_be_asked_for_by_name_and_nothing_else_may() -> None:
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    known = Metadata(state_dict_metadata={}, planner_data=ByName(_MEM_FORMAT_ENCODING, "TORCH_CHANNELS_LAST"))
    assert read_dcp_metadata(pickle.dumps(known), "it").planner_data is _MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST
    for owner, name in ((Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "__class__"), (_MEM_FORMAT_ENCODING, "mro")):
        stranger = Metadata(state_dict_metadata={}, planner_data=ByName(owner, name))
        with pytest.raises(CheckpointError, match=r"it is not safe to read: its metadata asks for builtins\.getattr"):
            read_dcp_metadata(pickle.dumps(stranger), "it")
