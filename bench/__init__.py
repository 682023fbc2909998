"""What agentflow claims about speed, measured beside the raw limit of the same disk in the same run."""
