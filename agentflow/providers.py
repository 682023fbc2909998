"""What the author of a provider needs: the protocol, its values, and helpers that read HTTP failures.

See `providers/README.md` in the repository for a whole provider in forty lines.
"""

from agentflow.models.clients import imported, shared_client
from agentflow.models.failures import exception_failure, status_failure, stream_failure
from agentflow.models.media import FilePart, ImagePart, Media
from agentflow.models.messages import (
    Message,
    OpaquePart,
    Origin,
    Part,
    ReasoningPart,
    TextPart,
    ToolCall,
    ToolResult,
    UserPart,
)
from agentflow.models.origin import Item, items_to_send_back, tool_call, with_unique_ids
from agentflow.models.output import lower_output
from agentflow.models.protocol import (
    BackgroundModel,
    Capabilities,
    ContentCheck,
    Failure,
    LookupModel,
    Model,
    PricedApart,
    SdkUsage,
    StreamEvent,
    Submitted,
)
from agentflow.models.registry import ENTRY_POINT_GROUP, register_provider, resolve_model
from agentflow.models.response import (
    AttemptReset,
    Delta,
    FinishReason,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    OutputSpec,
    RawAnswer,
    ReasoningDelta,
    TextDelta,
    ToolArgsDelta,
    ToolSpec,
    Usage,
)

__all__ = [
    "ENTRY_POINT_GROUP",
    "AttemptReset",
    "BackgroundModel",
    "Capabilities",
    "ContentCheck",
    "Delta",
    "Failure",
    "FilePart",
    "FinishReason",
    "ImagePart",
    "Item",
    "LookupModel",
    "Media",
    "Message",
    "Model",
    "ModelRequest",
    "ModelResponse",
    "ModelSettings",
    "OpaquePart",
    "Origin",
    "OutputSpec",
    "Part",
    "PricedApart",
    "RawAnswer",
    "ReasoningDelta",
    "ReasoningPart",
    "SdkUsage",
    "StreamEvent",
    "Submitted",
    "TextDelta",
    "TextPart",
    "ToolArgsDelta",
    "ToolCall",
    "ToolResult",
    "ToolSpec",
    "Usage",
    "UserPart",
    "exception_failure",
    "imported",
    "items_to_send_back",
    "lower_output",
    "register_provider",
    "resolve_model",
    "shared_client",
    "status_failure",
    "stream_failure",
    "tool_call",
    "with_unique_ids",
]
