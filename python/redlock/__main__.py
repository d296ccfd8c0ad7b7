"""``python -m redlock``: the command line."""

from redlock.cli import main

if __name__ == "__main__":
    main()
