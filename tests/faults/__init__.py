"""What agentflow claims to stand, tried: each test here, or marked `fault` elsewhere, has a short form and a full one.

An ordinary run does the short form; `python3 dev.py faults [N ...]` the full one of all faults or of those in
`catalogue.py`, and writes what was seen into docs/explanation/reliability.md.
"""
