"""The command line: each module some commands; heavy imports wait until a command runs."""
