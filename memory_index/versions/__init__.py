"""Tables to versions: building and appending, publishing and finding, checking and opening, moving."""
