"""Requests, field by field. A field is implemented in full or refused by name; nothing unknown is ignored."""

from ling.server.schema.chat import ChatRequest
from ling.server.schema.completion import CompletionRequest
from ling.server.schema.generation import GenerationRequest
from ling.server.schema.messages import Message
from ling.server.schema.strict import validate
from ling.server.schema.text import DetokenizeRequest, TokenizeRequest
from ling.server.schema.tools import NamedTool, Tool

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "GenerationRequest",
    "Message",
    "NamedTool",
    "TokenizeRequest",
    "Tool",
    "validate",
]
