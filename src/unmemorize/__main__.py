"""`python -m unmemorize`."""

from unmemorize.cli import main

main()
