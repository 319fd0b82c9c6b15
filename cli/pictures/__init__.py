"""Pictures for people (matplotlib, the `plot` extra). How they look is `look.py`; each other file draws one kind."""
