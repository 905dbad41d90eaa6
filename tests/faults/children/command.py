"""The command `lossbook`."""

from lossbook.book.cli import main

main()
