"""The `wise` command, one file for each command or group.

What they do is in the library; here are only options, tables and exit codes.
"""
