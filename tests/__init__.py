"""The tests of agentflow; a package, so that helpers beside the tests are imported as `tests.<name>`."""
