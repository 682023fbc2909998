"""What the author of a provider needs: the protocol, its values, and helpers that read HTTP failures.

See `providers/README.md` in the repository for a whole provider in forty lines.
"""

from agentflow.models.clients import imported, shared_client
from agentflow.models.deferral import DeferredModel, at_once, custom_id_of
from agentflow.models.failures import exception_failure, status_failure, stream_failure
from agentflow.models.messages import (
    ImagePart,
    Message,
    OpaquePart,
    Origin,
    Part,
    ReasoningPart,
    TextPart,
    ToolCall,
    ToolResult,
)
from agentflow.models.origin import Item, items_to_send_back, tool_call, with_unique_ids
from agentflow.models.output import lower_output
from agentflow.models.protocol import (
    BackgroundModel,
    Capabilities,
    DeferrableModel,
    Failure,
    JobLookupModel,
    JobSearch,
    LookupModel,
    Model,
    SdkUsage,
    StreamEvent,
    Submitted,
)
from agentflow.models.registry import ENTRY_POINT_GROUP, register_provider, resolve_model
from agentflow.models.response import (
    AttemptReset,
    Delta,
    FinishReason,
    Latency,
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
    "DeferrableModel",
    "DeferredModel",
    "Delta",
    "Failure",
    "FinishReason",
    "ImagePart",
    "Item",
    "JobLookupModel",
    "JobSearch",
    "Latency",
    "LookupModel",
    "Message",
    "Model",
    "ModelRequest",
    "ModelResponse",
    "ModelSettings",
    "OpaquePart",
    "Origin",
    "OutputSpec",
    "Part",
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
    "at_once",
    "custom_id_of",
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
