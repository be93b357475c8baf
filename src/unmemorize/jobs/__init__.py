"""What a command does between its options and its printing; each composes kinds of method into one result."""
