"""The command line: words in, words out. One module per group of commands, loaded when it is called.

Nothing here decides about the domain: a command parses its words, hands them to the daemon floor and prints what
came back. Errors of core become exit codes in `main`: 0 done, 1 refused or failed, 2 usage, 3 unreachable.
"""

__all__ = ["main"]
