"""``python -m autotune``, for where the command is not on the path."""

from autotune.cli import main

if __name__ == "__main__":
    main()
