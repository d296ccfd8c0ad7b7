"""Other people's files, unmodified. They are run by tests outside of this directory, not collected."""

collect_ignore_glob = ["*"]
