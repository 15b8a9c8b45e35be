"""``python -m conceptry`` runs the command line."""

from conceptry.cli.main import main

if __name__ == "__main__":
    main()
