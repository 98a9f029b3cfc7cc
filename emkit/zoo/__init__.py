"""The miniature zoo: small models of the real architectures, and the drawn data that they are trained on."""
