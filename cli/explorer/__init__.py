"""The local web page of `cli explore` (Dash, the `explore` extra).

Reading order: `state.py` (what is looked at, and its address), `subject.py` (what there is to look at, and asking it),
`moves.py` (from one state to the next), `words.py` and `figures.py` (what is shown of it), `page.py` (where),
`server.py` (who is answered). Nothing is computed here that `memory_index.inspection` or `forecaster.explain` does not
say.
"""
