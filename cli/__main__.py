"""`python -m cli` is the console script `cli`."""

from cli.main import main

main()
