"""`python -m metaalign_hf`: the same as `metaalign`."""

from .cli import main

if __name__ == "__main__":
    main()
