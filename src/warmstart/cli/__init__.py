"""The command line: `warmstart create`, `generate`, `inspect` and `demo`."""


def main() -> None:
    """Run the command that the process was started with; ends the process."""
    import os

    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are not ours to tell; how they end is
    from warmstart.cli.app import app

    app()
