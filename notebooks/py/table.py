# %% [markdown]
# # A table of merges, read from its score files
#
# This notebook shows what `make reproduce-table1` and its like computed: the rows of one of the paper's tables, or of a
# table of yours, scored on one profile's models and benchmarks. First comes what the scores say, then the scores, then
# figures and comparisons. It reads score files alone and so runs in seconds; nothing below is typed in by hand, the
# conclusion included. A number of the `mini` profile is never a reproduction of a number in the paper: it stands beside
# it.
#
# Table and profile are files: `eval/tables/table1.yaml` says which rows and columns there are, and
# `eval/profiles/mini/internvl.yaml` what they are computed with. The parameters choose both, and which rows, columns and
# pairs are shown. A run under way can be looked at: what does not stand yet is "not run yet".

# %% tags=["parameters"]
table: str = "table1"  # the table shown: a name of eval/tables, or a YAML file
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
# ## What the scores say
#
# Computed from the scores by rules that were fixed before any run. Rows are compared item by item, and the words follow
# the p value after Holm's correction: *ahead* or *behind* below 0.05, otherwise *not shown to differ*, which is not the
# same as *equal*. Where the paper has the same two rows, its difference stands beside ours. It is of other, much larger
# models on the full benchmarks, so what can be compared is the pattern: who is ahead of whom, and in which columns.

# %%
Markdown(shown.conclusion())

# %% [markdown]
# ## Our table
#
# Scores are percentages, ± one standard error. For a row without randomness that is the error over benchmark items; for
# a row that draws calibration samples it also holds the spread over seeds. `Avg` comes first. A row that has not been run
# says so there, with a dash where a score is missing; a cell that failed says "failed", and leaves its row without an
# average, because an average over what happened to work would mean nothing.

# %%
Markdown(shown.ours())

# %% [markdown]
# ## How far each merge has come
#
# In the figure the number is the score and the colour says how far it has come from the base to the column's own expert:
# white is the base, full blue the expert, red is behind the base. The merges, on top, have a scale of their own, as their
# whole range is often a small part of the way; the bar below each panel says where its colours end. A column is grey
# where the expert is ahead of the base by less than two standard errors, because nothing can be measured by such a
# yardstick. Look for rows that are blue throughout: a merge that takes something of every expert. A row that is deep blue
# in one group of columns and red in the others has kept one expert and lost the rest. In the lower panel every expert
# should be blue in its own columns; how red it is elsewhere is what it has forgotten.

# %%
desk.show(*shown.heatmap())

# %% [markdown]
# ## Which differences are larger than their error
#
# Two rows answer the same questions, so they are compared item by item: the difference is the mean over items of
# (first − second), its 95 % interval is a paired t interval, and rows with several seeds enter with each item's mean over
# seeds. Where several pairs are compared on a benchmark, their p values are adjusted by Holm's rule.

# %%
Markdown(shown.verdicts())

# %% [markdown]
# The figure takes the same pairs apart, benchmark by benchmark. Right of the grey line the first row is better. Filled
# points are shown to differ; an interval that crosses the line is compatible with no difference at all. The axis is cut
# where nine of ten intervals end: an arrow at its edge carries the number of what lies beyond. Look whether a difference
# of averages comes from many columns or from one.

# %%
desk.show(*shown.differences())

# %% [markdown]
# ## The published table
#
# The paper's numbers, first its averages beside ours, then all columns (a dash is a dash in the paper). A row that the
# paper does not have has a dash.

# %%
Markdown(shown.published())

# %% [markdown]
# ## What was done
#
# With $\tau_k = \theta_k - \theta_{\text{base}}$ for the experts $k$ that were trained from one base, every merged row of
# the table is a case of
#
# $$\theta_{\text{merged}}^\ell = \theta_{\text{base}}^\ell + \sum_{k} \sum_{s} \alpha_{k,s}^\ell\, \tau_{k,s}^\ell$$
#
# over the merged tensors $\ell$; all other tensors are the base's. Weight Average has $\alpha = 1/K$ everywhere; Task
# Arithmetic one $\alpha = \lambda$, chosen on validation items; Expert Merging learns one $\alpha$ per tensor and expert
# from a few unlabeled samples (Eq. 1–3); Expert Merging++ one per chunk $s$ of the tensors that matter most (Eq. 4).

# %%
Markdown(f"{shown.say('merged')}\n{shown.say('asked')}")

# %% [markdown]
# ## How the free scale was chosen
#
# Some methods leave one number free, the $\lambda$ that task vectors are scaled by. The rule, fixed before any run: merge
# at each value of the profile's grid, score the *validation* items of all benchmarks by the same harnesses, and take the
# value with the best mean, the smaller one on ties. No evaluation item is involved. All panels have the same axes, so that
# they show how much there is to lose: each curve should rise, bend and fall, the band is one standard error, the dashed
# line the choice. A choice at the left end says that the method does best next to the base. Scales that a method's
# authors fix are not searched.

# %%
desk.show(*shown.scale_curves())

# %%
Markdown(shown.scales())

# %% [markdown]
# ## What another calibration draw changes
#
# Another draw of samples gives other coefficients. Below is a 95 % t interval of the average over the seeds of each
# learned row. With three seeds it is wide by nature; what it says is whether the draw matters on the scale of the
# differences above.

# %%
Markdown(shown.seeds())

# %% [markdown]
# ## Who leads where, and what merging can reach
#
# Merging moves some tensors and leaves the rest at the base, so an expert is within reach as far as it sits in the merged
# tensors. Per benchmark: the base, the column's own expert, that expert's merged tensors alone where the table has such
# rows, and the expert that leads. On a zoo that is worth merging it is the column's own.

# %%
Markdown(shown.reach())

# %% [markdown]
# ## What was learned
#
# The coefficients of a learned row's first seed: a map for each expert, blocks by kinds of tensors. Blue is positive, red
# negative, white takes nothing of that expert there. Task Arithmetic would be one even colour in all of them; the more
# structure there is, the more the alignment losses disagree with a single $\lambda$. Look for a map that is darker than
# the others (an expert that is trusted more) and for cells that are white or red.

# %%
desk.show(*shown.learned())

# %% [markdown]
# ## What this shows, and what it does not
#
# It shows that the whole path runs: published loaders, real architecture, real harnesses, the paper's equations, one job
# per row, and a table that anyone can regenerate and check. It shows, for *these* models and items, which rows are ahead
# and whether the difference is larger than its error.
#
# It does not show that the paper's numbers are right or wrong. The experts may be further from or closer to their base
# than the published ones, and one zoo is one sample of all zoos that the same recipe could have produced. Differences
# between methods are therefore statements about this zoo. Two rows whose interval crosses zero are not shown to be equal,
# only not shown to differ. Rows marked "not run yet" are missing, and no conclusion about "the best method" holds without
# them. Scores may differ in the last digits on another processor, where sums are taken in another order.

# %%
Markdown(shown.say("limits"))
