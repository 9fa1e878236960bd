"""Checks of weights that are prepared for ling's CPU kernels: what other programs would make of them does not count."""

import dataclasses
from collections.abc import Iterator

from ling.checkpoint.doctor import tensors
from ling.checkpoint.doctor.evidence import CONFIG, Evidence
from ling.checkpoint.doctor.finding import Finding, error, listed, note
from ling.checkpoint.names import may_be_ignored
from ling.checkpoint.packing import formats_told
from ling.checkpoint.prepared import stored_model, stored_weights
from ling.checkpoint.writer import safetensors_name
from ling.config import ModelConfig
from ling.errors import CheckpointError

_AGAIN = "prepare it again with ling convert"
_EMBEDDING = "model.word_embeddings.weight"


def packed_weights(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """Every tensor of the packed model is stored as it lies in memory, and nothing else is."""
    where = f"{CONFIG}: quantization_config"
    try:
        weights = stored_weights(seen.raw_config, CONFIG)
    except CheckpointError as problem:
        yield error(where, str(problem).removeprefix(f"{CONFIG}: "), _AGAIN)
        return
    yield note(
        where,
        f"{formats_told(weights)} weights, packed for ling on CPUs: no other program reads them, and ling converts and "
        "exports them no further",
        "for anything else, use the checkpoint that they were made from",
    )
    if not seen.whole:
        return
    wanted_model = stored_model(model, weights, {key: tensor.dtype for key, tensor in seen.stored.items()})
    places = {
        key: (safetensors_name(place.dtype), tuple(place.shape)) for key, place in wanted_model.state_dict().items()
    }
    if missing := [key for key in places if key not in seen.stored]:
        yield error(listed(missing), f"{len(missing)} tensors that config.json asks for are not there", _AGAIN)
    wrong = [key for key in places if key in seen.stored and _header(seen, key) != places[key]]
    if wrong:
        (dtype, shape), (wanted, asked) = _header(seen, wrong[0]), places[wrong[0]]
        what = f"{len(wrong)} tensors are of another form: the first is {dtype} {shape}, not {wanted} {asked}"
        yield error(listed(wrong), what, _AGAIN)
    if strangers := [key for key in seen.stored if key not in places and may_be_ignored(key, model) is None]:
        yield error(listed(strangers), f"{len(strangers)} tensors have no place in the network", _AGAIN)


def vocabulary(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """Embedding, `vocab_size` and tokenizer fit together; the head is packed, and its rows are no longer its first."""
    table = {key: tensor for key, tensor in seen.stored.items() if key == _EMBEDDING}
    yield from tensors.vocabulary(dataclasses.replace(seen, stored=table), model)


def _header(seen: Evidence, key: str) -> tuple[str, tuple[int, ...]]:
    return seen.stored[key].dtype, seen.stored[key].shape
