"""agentflow: agents and LLM pipelines on durable steps."""
