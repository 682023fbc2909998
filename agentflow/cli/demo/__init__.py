"""`agentflow demo`: an agent that stops for a person, offline, in `./.agentflow/`."""
