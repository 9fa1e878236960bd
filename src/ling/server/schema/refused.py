"""Fields of OpenAI's API and of vLLM's and SGLang's extras that this server does not implement, with the reason."""

_TEXT_ONLY = "this model reads and writes text only"
_OWN_TEMPLATE = "a model has one chat format, and a request cannot bring another"
_ONE_MODEL = "the server runs one model as it is"
_SAMPLING = "the engine does not sample that way"

REFUSED: dict[str, str] = {
    "audio": _TEXT_ONLY,
    "modalities": _TEXT_ONLY,
    "mm_processor_kwargs": _TEXT_ONLY,
    "prompt_embeds": _TEXT_ONLY,
    "web_search_options": "the server opens no connections of its own",
    "documents": "put their text into a message",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "prediction": "the engine drafts by itself and needs no predicted text",
    "reasoning_effort": 'this model thinks or not: chat_template_kwargs={"thinking": true}',
    "verbosity": "ask for it in a message",
    "chat_template": _OWN_TEMPLATE,
    "continue_final_message": "send the text to /v1/completions to have it continued",
    "echo": "only /v1/completions repeats its prompt",
    "suffix": "the model was not trained to fill in the middle",
    "best_of": "ask for n answers with logprobs and choose among them",
    "use_beam_search": _SAMPLING,
    "length_penalty": _SAMPLING,
    "early_stopping": _SAMPLING,
    "logits_processors": "requests bring no code",
    "custom_logit_processor": "requests bring no code",
    "allowed_token_ids": "use structured_outputs with choice or regex, or logit_bias",
    "bad_words": "use logit_bias",
    "typical_p": _SAMPLING,
    "truncate_prompt_tokens": "cut the prompt before sending it",
    "guided_decoding_backend": "there is one, llguidance",
    "guided_whitespace_pattern": "whitespace in JSON is bounded already",
    "structural_tag": "use tools with tool_choice, or structured_outputs",
    "ebnf": "use structured_outputs with grammar, in Lark's notation",
    "lora_path": _ONE_MODEL,
    "lora_adapter": _ONE_MODEL,
    "priority": "requests are served in the order in which they come",
    "kv_transfer_params": "caches are not passed between servers",
    "vllm_xargs": "name the parameters themselves",
    "return_hidden_states": "hidden states are not part of an answer",
    "input_ids": "send token ids as prompt to /v1/completions",
    "request_id": "the server numbers requests itself",
    "service_tier": "there is one service",
    "moderation": "answers are not moderated",
}
