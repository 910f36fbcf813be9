"""The command line: `wise edit`, `ask`, `eval`, `info` and `demo`, one file each.

What they do is in the library; here are only options, tables and exit codes.
"""
