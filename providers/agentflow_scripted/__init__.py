"""A provider without a network: `scripted:module:attribute` or `scripted:path/to/script.json`, or
`Scripted(rules)`.
"""

from agentflow_scripted.provider import GENERATIONS_FILE, Scripted
from agentflow_scripted.script import Rule, Script

__all__ = ["GENERATIONS_FILE", "Rule", "Script", "Scripted"]
