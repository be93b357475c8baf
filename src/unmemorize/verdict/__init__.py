"""What an audit adds up to: counts with intervals, findings with codes, conditions for a build server."""
