"""``python -m minitorch_peft.cli``: the command line without the installed script."""

from minitorch_peft.cli import main

if __name__ == "__main__":
    main()
