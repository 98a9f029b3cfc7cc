"""Scoring: harnesses, judge, score files, tables and notebooks. Builds on `emkit`; `emkit` never imports this."""
