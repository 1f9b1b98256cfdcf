"""`python -m cortexd` is the `cortexd` command."""

from cortexd.cli.main import main

if __name__ == "__main__":
    main()
