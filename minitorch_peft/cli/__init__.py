"""The command line: ``minitorch-peft pretrain | adapt | compare | generate | merge | inspect | course``."""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``minitorch-peft`` script."""
    from minitorch_peft.cli.app import app

    app()
