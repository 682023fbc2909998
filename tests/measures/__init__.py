"""What agentflow claims to stand, measured; `AGENTFLOW_TEST_FULL=1` does all of it, an ordinary run a part."""
