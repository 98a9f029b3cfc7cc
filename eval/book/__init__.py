"""``make book``: a site of executed notebooks, tables, methods and API that opens from a plain folder, offline."""
