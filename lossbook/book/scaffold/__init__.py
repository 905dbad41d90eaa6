"""The places that a planned paper needs: function, tests, notebook and catalogue row, each saying what goes there."""
