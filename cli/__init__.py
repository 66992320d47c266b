"""The `tandem` command, and the lifecycle of the service that it starts."""

from tandem.cli import callers_directory

if callers_directory.is_the_program():
    callers_directory.take_out()  # before anything else is imported
