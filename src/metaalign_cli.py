"""The `metaalign` program.

It lies outside the package on purpose: `import metaalign_hf` makes the Auto classes of transformers know our
checkpoints, which takes seconds, and the program must answer `--help` and usage errors without them. Where the package
finds this module imported, it leaves that to the command that loads a model.
"""

__all__ = ["main"]


def main() -> None:
    """Run a command and exit with its code."""
    from metaalign_hf.cli import main as run

    run()


if __name__ == "__main__":
    main()
