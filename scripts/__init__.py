"""The `landscape` command: one thin module a subcommand."""
