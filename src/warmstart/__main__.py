"""`python -m warmstart`: the command line, for what starts modules (`accelerate launch -m warmstart train ...`)."""

from warmstart.cli import main

if __name__ == "__main__":
    main()
