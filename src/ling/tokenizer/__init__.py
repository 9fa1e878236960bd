"""Text: vocabulary, chat format, and the way back from ids to text. Knows no model and never imports torch.

Special tokens act only where the format puts them: text from outside is encoded with `special=False`.
"""

from ling.tokenizer.bpe import train_bpe
from ling.tokenizer.chat import ChatOptions, encode_chat, encode_segments, render, render_segments
from ling.tokenizer.detokenizer import IncrementalDetokenizer
from ling.tokenizer.segment import Message, Segment
from ling.tokenizer.special import SPECIAL_TOKENS
from ling.tokenizer.tokenizer import Tokenizer
from ling.tokenizer.tool_calls import ParsedAnswer, ToolCall, format_tool_call, parse_answer

__all__ = [
    "SPECIAL_TOKENS",
    "ChatOptions",
    "IncrementalDetokenizer",
    "Message",
    "ParsedAnswer",
    "Segment",
    "Tokenizer",
    "ToolCall",
    "encode_chat",
    "encode_segments",
    "format_tool_call",
    "parse_answer",
    "render",
    "render_segments",
    "train_bpe",
]
