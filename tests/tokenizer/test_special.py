"""Special tokens have the spellings, order and roles of the published tokenizers (tokenizer_chat.md 1)."""

from ling.tokenizer import special


def test_order_is_that_of_the_published_ids():
    published = {
        "<|startoftext|>": 156891, "<|endoftext|>": 156892, "[CLS]": 156893, "[gMASK]": 156894,
        "<|role_end|>": 156895, "<role>": 157151, "</role>": 157152,
    }  # fmt: skip
    assert sorted(published, key=published.__getitem__) == list(special.SPECIAL_TOKENS)


def test_the_two_configurations_differ_in_the_end_of_text_only():
    chat, pretrain = special.named_tokens(special.CHAT), special.named_tokens(special.PRETRAIN)
    assert chat == {
        "bos_token": "<|startoftext|>",
        "cls_token": "[CLS]",
        "eos_token": "<|role_end|>",
        "gmask_token": "[gMASK]",
        "pad_token": "<|endoftext|>",
    }
    assert pretrain == chat | {"eos_token": "<|endoftext|>"}
