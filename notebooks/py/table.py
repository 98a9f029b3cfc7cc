# %% [markdown]
# # A table of merges, read from its score files
#
# This notebook shows what `make reproduce-table1` and its like computed: the rows of one of the paper's tables, or of a
# table of yours, scored on one profile's models and benchmarks. It only reads score files, so it runs in seconds. Nothing
# below is typed in by hand, and a number of the `mini` profile is never a reproduction of a number in the paper: it stands
# beside it.
#
# Which table that is, what its rows are and what holds for it alone stands in one YAML file (`eval/tables/table1.yaml`);
# what the rows were computed with stands in the profile (`eval/profiles/mini/internvl.yaml`). Papermill fills in the
# parameters; the defaults are Table 1 of the embedded `mini` profile. Opened in Jupyter, the notebook needs the kernel of
# the repository's environment (`make setup` builds `.venv`), and scores: without any, the first cell says which command
# makes them. A row that has not been run shows as "not run yet".

# %% tags=["parameters"]
table: str = "table1"  # the table shown: a name of eval/tables, or a YAML file
profile: str = "mini"  # the profile that it was run with: mini, smoke, paper, or a YAML file
results: str = "results"  # the folder of all profiles' results

# %%
import os

from IPython.display import Markdown

from eval import comparisons, figures, render
from eval.keys import ROOT
from eval.plan import Plan

os.chdir(ROOT)  # paths in a profile are relative to the repository
plan = Plan(table, profile, results)

# %%
lines, say = render.entries(plan), plan.table.prose.get
cells = f"{len(plan.jobs)} merges, {len(plan.jobs) * len(plan.benchmarks)} cells"
heading = f"# {plan.table.title}: {plan.table.about}\n\nProfile **{plan.profile.name}**: {cells}."
Markdown(f"{heading}\n\n{say('models', '')}\n{say('merged', '')}\n{say('asked', '')}")

# %% [markdown]
# ## What was done
#
# With $\tau_k = \theta_k - \theta_{\text{base}}$ for the experts $k$ that were trained from one base, every merged row of
# the table is a case of
#
# $$\theta_{\text{merged}}^\ell = \theta_{\text{base}}^\ell + \sum_{k} \sum_{s} \alpha_{k,s}^\ell\, \tau_{k,s}^\ell$$
#
# over the merged tensors $\ell$ (named above); all other tensors are the base's. Weight Average has $\alpha = 1/K$
# everywhere; Task Arithmetic one $\alpha = \lambda$, chosen on validation items; Expert Merging learns one $\alpha$ per
# tensor and expert from a few unlabeled samples (Eq. 1–3); Expert Merging++ one per chunk $s$ of the tensors that matter
# most (Eq. 4). `Plan` above is the list of exactly the jobs that were run.
#
# ## Our table
#
# Scores are percentages, ± one standard error. For a row without randomness that is the error over benchmark items; for
# a row that draws calibration samples it also holds the spread over seeds. A row that has not been run says so; a cell
# that failed would say "failed" and leave its row without an average, because an average over what happened to work
# would mean nothing.

# %%
Markdown(render.ours(lines))

# %% [markdown]
# ## The published table
#
# These are the paper's numbers, of other, much larger models on the full benchmarks (a dash is a dash in the paper). They
# are here to compare *patterns*: which rows are ahead of which, and in which columns, not how many points a cell has. The
# second table puts the averages beside each other. A table that the paper does not have shows nothing here.

# %%
beside = plan.table.published and render.averages(lines, plan.table, plan.profile.name)
Markdown(f"{plan.table.published.models}:\n\n{render.theirs(plan.table)}\n\n{beside}" if beside else "none")

# %% [markdown]
# ## Each method against the experts
#
# In the figure the number is the score, and the colour says what share of the column's *own* expert it reaches: white is
# as good as the expert, blue better, red worse. Read the experts' rows first: each should be white in its own columns and
# red elsewhere, which is what makes merging worth while. A good merge is pale all along its row. The average stands
# beside the method's name.

# %%
figure = figures.heatmap(plan, lines)

# %% [markdown]
# ## How the free scale was chosen
#
# Some methods leave one number free, the $\lambda$ that task vectors are scaled by. The rule, fixed before any run: merge at
# each value of the profile's grid, score the *validation* items of all benchmarks by the same harnesses, and take the
# value with the best mean, the smaller one on ties. No evaluation item is involved. The curves show how much there is to
# lose: each should rise, bend and fall, and the dashed line marks the choice. A line at the left end says that the method
# does best next to the base: its row then stays near the base's, whatever the method could do elsewhere. Expert Merging
# starts from Task Arithmetic's value, as in the paper's Section 3.2. Scales that a method's authors fix are not searched.

# %%
curves = figures.scale_curves(plan)

# %% [markdown]
# ## Are the learned merges ahead?
#
# Two rows answer the same questions, so they are compared item by item: the difference is the mean over items of
# (first − second), its 95 % interval is a paired t interval, and rows with several seeds enter with each item's mean over
# seeds. Where several comparisons are made on every benchmark, their p values are adjusted by Holm's rule. The words in
# the last column follow from a rule fixed beforehand: *ahead* or *behind* if the adjusted p is below 0.05, otherwise *no
# difference shown*, which is not the same as *no difference*. The table gives the averages, the figure every benchmark.

# %%
found = comparisons.compare(plan, plan.table.compare)
Markdown(comparisons.as_markdown(comparisons.verdicts(found)) + "\n\n" + say("compared", ""))

# %% [markdown]
# Points to the right of the grey line mean that the first row of the pair is better. An interval that crosses the line is
# compatible with no difference at all.

# %%
figure = figures.differences(found, f"Paired differences, profile {plan.profile.name}")

# %% [markdown]
# Another calibration draw gives other coefficients. The next lines show how much of that is left in the average: a 95 %
# t interval over the seeds of each random row. With three seeds it is wide by nature; what it says is whether the draw
# matters on the scale of the differences above.

# %%
Markdown(comparisons.as_markdown(comparisons.seed_intervals(plan, plan.table.learned)))

# %% [markdown]
# ## Who leads where, and what merging can reach
#
# Merging moves some tensors and leaves the rest at the base, so an expert is within reach as far as it sits in the merged
# tensors. Per benchmark: the base, the column's own expert, that expert's merged tensors alone where the table has such
# rows, and the expert that leads. On a zoo that is worth merging it is the column's own.

# %%
Markdown(say("reach", "") + "\n\n" + comparisons.as_markdown(comparisons.reach(plan, lines)))

# %% [markdown]
# ## What was learned
#
# The map shows the coefficients of a learned row's first seed, experts by merged tensors in the model's order. Blue is a
# positive coefficient, red a negative one. Task Arithmetic would be one even colour; the more structure there is, the more
# the alignment losses disagree with a single $\lambda$. Look for rows that are darker than others (an expert that is
# trusted more) and for columns that are pale (tensors in which nothing is worth taking).

# %%
figure = figures.learned(plan)

# %% [markdown]
# ## What this shows, and what it does not
#
# It shows that the whole path runs: published loaders, real architecture, real harnesses, the paper's equations,
# one job per row, and a table that anyone can regenerate and check. It shows, for *these* models and items, which rows are
# ahead and whether the difference is larger than its error.
#
# It does not show that the paper's numbers are right or wrong. The experts may be further from or closer to their base
# than the published ones, and one zoo is one sample of all zoos that the same recipe could have produced. Differences
# between methods are therefore statements about this zoo. Two rows whose interval crosses zero are not shown to be equal,
# only not shown to differ. Rows marked "not run yet" are missing, and no conclusion about "the best method" holds without
# them. Scores may differ in the last digits on another processor, where sums are taken in another order.

# %%
Markdown(say("limits", ""))
