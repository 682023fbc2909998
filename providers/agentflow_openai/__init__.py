"""OpenAI's models for agentflow.

`openai:gpt-5-mini` is always the Responses API, `openai-chat:...` Chat Completions, which every gateway
speaks: `OpenAIChat("llama-4", base_url="http://localhost:8080/v1", api_key="none")`.
"""

from agentflow_openai.provider import OpenAIChat, OpenAIResponses

__all__ = ["OpenAIChat", "OpenAIResponses"]
