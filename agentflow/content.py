"""What a user's message, or a tool's result, may hold beside text: images and files."""

from agentflow.models.media import FilePart, ImagePart
from agentflow.models.messages import TextPart

__all__ = ["FilePart", "ImagePart", "TextPart"]
