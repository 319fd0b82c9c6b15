"""One module for each command or group of commands: parse, ask the library, report."""
