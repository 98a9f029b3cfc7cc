"""The items of the columns: how they are drawn and written, and the committed hashes of what is drawn."""
