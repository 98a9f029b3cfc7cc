# %% [markdown]
# # What a part of Expert Merging does, or a number in it
#
# This notebook shows one of the paper's Tables 5 to 13, computed on a profile's own models: what each part of the method
# does (Tables 5 to 7), how strong the regulariser should be (8 to 10), how many unlabeled samples are needed (11 to 13).
# It reads the score files that `make reproduce-table5` and its like leave; nothing below is typed in by hand, the verdicts
# included. A number of the `mini` profile is never a reproduction of a number in the paper: it stands beside it.
#
# Every row is Expert Merging with one thing changed, merged again for each of several draws of calibration samples, asked
# the same questions, and compared item by item with Expert Merging as the profile has it.

# %% tags=["parameters"]
table: str = "table5"  # the table shown: a name of eval/tables, or a YAML file
profile: str = "mini"  # the profile that it was run with: mini, smoke, paper, or a YAML file
results: str = "results"  # the folder of all profiles' results
rows: str = ""  # the rows shown, by id or name, with commas between them; empty: all
columns: str = ""  # the benchmarks shown, with commas between them; empty: all
pairs: str = ""  # the rows compared, as first:second, with commas; empty: those that the table compares

# %%
from IPython.display import Markdown

from eval import desk
from eval.view import View

desk.ready()
shown = View(table, profile, results, rows, columns, pairs)

# %%
Markdown(shown.heading())

# %% [markdown]
# ## What becomes of the paper's claims
#
# Each claim that the paper makes on this table was put as a rule on paired differences before anything was run. *Shown*
# needs every difference of the claim to be larger than its error (p below 0.05 after Holm's correction over all pairs of
# the table), or, where the claim is that nothing changes, every 95 % interval to lie within the margin. *Contradicted*
# needs the opposite to be shown. *Not shown* is neither: these items cannot tell.

# %%
Markdown(shown.claims())

# %% [markdown]
# ## The scores
#
# Percentages, ± one standard error, which holds the benchmark's items and the spread over calibration draws. `Avg` is the
# unweighted mean of the columns.

# %%
Markdown(shown.ours())

# %% [markdown]
# ## What the rows were run with
#
# Only what differs from the profile's own Expert Merging is listed. A row that comes to the same settings as a row of
# another table is that row: it is scored once, and has the same number wherever it stands.

# %%
Markdown(shown.ran_with())

# %% [markdown]
# ## At one look
#
# Of a sweep: the average and each expert's columns over the number that is swept, ours on the left with the band of a
# 95 % interval, the paper's on the right on an axis of its own. Compare the shapes, not the heights: look whether there is
# an optimum inside the range, and whether the band is narrower than what it is said to show. Of an ablation: what each row
# is ahead of Expert Merging, column by column, with 95 % intervals; look whether a loss is spread or sits in one column.

# %%
desk.show(*shown.main_figure())

# %% [markdown]
# ## Each row against Expert Merging
#
# The averages' differences in points, paired over items, with the paper's differences beside them. Seeds enter as each
# item's mean over the draws, so the intervals speak of other questions, not of other calibration samples; those come below.

# %%
Markdown(shown.verdicts())

# %% [markdown]
# The claims once more, with the numbers behind each verdict; *its differences* are the paper's, in the direction of the
# claim.

# %%
Markdown(shown.judged())

# %% [markdown]
# ## What another draw of calibration samples changes
#
# The average over the draws with its 95 % t interval. With three draws it is wide by nature. Where it is wider than the
# differences above, another draw may well turn them round.

# %%
Markdown(shown.seeds())

# %% [markdown]
# ## The published table

# %%
Markdown(shown.published())

# %% [markdown]
# ## What this shows, and what it does not
#
# It shows which part of the method matters *for these miniature models*, whose experts, losses and coefficients are of
# other sizes than the paper's. A part that does nothing here may matter there. The paper's own numbers come, as a test of
# their granularity says (`00-reading-the-tables`), from single runs, so that its smaller differences may not survive
# another draw either.
