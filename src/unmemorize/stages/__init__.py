"""The steps of the cycle, a file each; a command runs one or two of them, an audit nearly all."""
