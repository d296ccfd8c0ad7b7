"""What the command ``redlock`` does: one module per group of subcommands, imported when one of them is called."""
