"""`python -m sac_cli`, for machines where the entry point is not on the path."""

from sac_cli.main import main

if __name__ == "__main__":
    main()
