"""`python -m agentflow` is the same as `agentflow`."""

from __future__ import annotations

from agentflow.cli import main

if __name__ == "__main__":
    main()
