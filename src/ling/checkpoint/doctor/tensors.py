"""Checks of the tensors against the configuration: what is missing, what has no place, MTP, the vocabulary."""

from collections.abc import Iterator

from ling.checkpoint.doctor.evidence import CONFIG, Evidence, layer_of
from ling.checkpoint.doctor.finding import Edit, Finding, error, listed, note, warning
from ling.checkpoint.names import Piece, may_be_ignored, published_pieces
from ling.config import ModelConfig

_EMBEDDING, _HEAD = "model.word_embeddings.weight", "lm_head.weight"
_PADDED_TO = 128


def all_there(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """Every tensor of the network is stored, in its shape, and nothing else is."""
    if not seen.whole or seen.is_mtp_alone:
        if seen.is_mtp_alone:
            yield note(
                seen.directory.name, "this is an MTP layer alone, for engines that draft with it; no model by itself"
            )
        return
    pieces = [p for p in published_pieces(model) if p.layer < model.num_hidden_layers]
    held = {layer_of(key) for key in seen.stored}
    pieces += [p for p in _mtp_pieces(model) if p.layer in held]
    if missing := [p.key for p in pieces if p.key not in seen.stored]:
        yield error(
            listed(missing),
            f"{len(missing)} tensors that config.json asks for are not there",
            "copy them, or mend config.json",
        )
    wrong = [
        p for p in pieces if p.key in seen.stored and seen.stored[p.key].shape != p.shape and not _is_vocabulary(p)
    ]
    if wrong:
        first, shape = wrong[0], seen.stored[wrong[0].key].shape
        yield error(
            listed([p.key for p in wrong]),
            f"{len(wrong)} tensors have another shape: the first {shape}, not {first.shape}",
            "mend config.json: it describes another network",
        )
    known = {p.key for p in published_pieces(model)}
    known |= {p.scale_key for p in published_pieces(model)}
    strangers = [key for key in seen.stored if key not in known and may_be_ignored(key, model) is None]
    if strangers:
        yield error(
            listed(strangers),
            f"{len(strangers)} tensors have no place in the network",
            "mend config.json, or remove them",
        )
    odd = [
        p.key
        for p in pieces
        if p.key in seen.stored and seen.stored[p.key].dtype not in ("BF16", "F16", "F32", "F8_E4M3")
    ]
    if odd:
        yield error(
            listed(odd),
            f"{len(odd)} tensors are of dtype {seen.stored[odd[0]].dtype}",
            "convert to BF16, F32 or FP8 blocks",
        )


def mtp(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """MTP tensors and `num_nextn_predict_layers` say the same."""
    if not seen.whole or seen.is_mtp_alone:
        return
    L, promised = model.num_hidden_layers, model.num_nextn_predict_layers
    held = sorted({layer for key in seen.stored if (layer := layer_of(key)) >= L})
    where = f"{CONFIG}: num_nextn_predict_layers"
    if held == list(range(L, L + promised)):
        return
    if not held:
        yield error(
            where,
            f"{promised}, but no tensor of layer {L} is there: loaders fail, or draft with random weights",
            "write 0",
            Edit(file=CONFIG, set={"num_nextn_predict_layers": 0}),
        )
        return
    meant = seen.with_stored_mtp(model)
    whole = held == list(range(L, L + len(held))) and all(p.key in seen.stored for p in _mtp_pieces(meant))
    layers = listed([str(layer) for layer in held])
    told = "absent" if seen.config.get("num_nextn_predict_layers") is None else str(promised)
    yield (error if promised else warning)(
        where,
        f"{told}, but only MTP layer {layers} has tensors: loaders wait for more"
        if promised
        else f"{told}, but there are tensors of MTP layer {layers}: nobody drafts with them",
        f"{f'write {len(held)}' if whole else 'copy the rest of the layer'}, or drop it with ling convert --mtp drop",
        Edit(file=CONFIG, set={"num_nextn_predict_layers": len(held)}) if whole else None,
    )


def vocabulary(seen: Evidence, model: ModelConfig) -> Iterator[Finding]:
    """Embedding, head, `vocab_size` and tokenizer fit together."""
    rows = {
        key: seen.stored[key].shape[0] for key in (_EMBEDDING, _HEAD) if key in seen.stored and seen.stored[key].shape
    }
    if len(set(rows.values())) > 1:
        yield error(f"{_EMBEDDING}, {_HEAD}", f"{rows[_EMBEDDING]} rows and {rows[_HEAD]} rows", "copy the right one")
        return
    size = next(iter(rows.values()), model.vocab_size)
    where = f"{CONFIG}: vocab_size"
    if size != model.vocab_size:
        fits = all(seen.stored[key].shape[1:] == (model.hidden_size,) for key in rows)
        yield error(
            where,
            f"{model.vocab_size}, but embedding and head have {size} rows",
            f"write {size}",
            Edit(file=CONFIG, set={"vocab_size": size}) if fits else None,
        )
    if size % _PADDED_TO:
        yield note(where, f"{size} rows are no multiple of {_PADDED_TO}: tensor-parallel engines pad them")
    known = seen.tokenizer.vocab_size if seen.tokenizer is not None else size
    if known > size:
        yield error(
            "tokenizer.json",
            f"it has {known} tokens, the embedding {size} rows: some tokens have none",
            "use the tokenizer that belongs to the model",
        )
    elif size - known >= max(_PADDED_TO * 8, size // 64):
        yield warning(
            "tokenizer.json",
            f"it has {known} tokens, the embedding {size} rows: more than padding",
            "use the tokenizer that belongs to the model",
        )
    elif known < size:
        yield note(where, f"{size - known} rows pad the vocabulary of {known} tokens; nothing to mend")


def _mtp_pieces(model: ModelConfig) -> list[Piece]:
    return [p for p in published_pieces(model) if p.layer >= model.num_hidden_layers]


def _is_vocabulary(piece: Piece) -> bool:
    return piece.key in (_EMBEDDING, _HEAD)
