# %% [markdown]
# # Looking at the answers
#
# A table says *how often* a model is right. It does not say what a wrong answer looks like, and two models with the
# same score can fail in different ways. Here you see the pictures, the questions, the gold answers, and what the base,
# an expert and the merges said to them. By the end you will have seen
#
# - why some merges lose a whole column: they know where the object is, or not, but no longer *write* what the benchmark
#   can read;
# - which items every merge misses, and which only the expert gets;
# - where Expert Merging is right and Task Arithmetic wrong, and how often it is the other way round.
#
# Pictures and questions need nothing but this repository: they are drawn when they are not there yet, which takes half a
# minute. Answers are what `make reproduce-table1` left behind (for another table, its number). Where they are missing,
# a line says so, and the rest of the notebook still runs.

# %% tags=["parameters"]
table: str = "table1"  # table1, table2, table3, or a YAML file of your own
benchmark: str = "RefCOCO"  # a column of that table, looked at closely; for table3 say GSM8K
first: str = "expert_merging"  # a row of the table …
second: str = "task_arithmetic"  # … and the one that it is compared with
suspect: str = "tsv"  # a row whose answers in this column are read one by one
items: int = 4  # how many items a gallery shows
profile: str = "mini"  # whose models and items
results: str = "results"  # the folder of all profiles' results

# %%
from eval import desk, looking
from eval.lessons import answers
from eval.plan import Plan

desk.ready()
plan = Plan(table, profile, results)

# %% [markdown]
# ## One question of each benchmark
#
# Every column of the table is a benchmark in the format of its own harness: VLMEvalKit for pictures,
# lm-evaluation-harness and alpaca_eval for texts. The items of `mini` are drawn by the project; the questions are of the
# kinds that the real benchmarks ask. *Look at* what counts as gold. VizWiz has ten annotators who disagree, so an answer
# may be right in part; a multiple-choice item takes the option's letter or its text; RefCOCO wants the corners of a
# box, in thousandths of the picture's sides: x and y of the upper left, x and y of the lower right.

# %%
looking.show(answers.one_of_each(plan), n=len(plan.benchmarks))

# %% [markdown]
# ## What was answered
#
# `looking.items` joins the items of one benchmark with the answers of any rows of the table: a pandas frame with one
# line an item, and for each row its `prediction`, its `score` between 0 and 1, and whether the answer is `well-formed`:
# of the form that the harness can read at all. We ask for the base, the expert whose column this is, and every merge.

# %%
frame = looking.items(plan, benchmark, answers.cast(plan, benchmark))
rows = answers.few(frame, plan, second, suspect, first)
looking.show(frame, rows, items)

# %% [markdown]
# *Look at* the shape of the wrong answers. Some are a box in the wrong place, or a wrong number: the model
# understood what was wanted and failed. Others are not an answer at all: cut off, or a word where a number should
# be. Both score 0, and a table cannot tell them apart.
#
# ## Format and content
#
# It can be told apart by counting. Write $w$ for the share of a row's answers that are well-formed, and $r$ for the
# score of those alone. What cannot be read scores 0 (AlpacaEval aside, whose judge may prefer anything), so the column's
# score is
#
# $$\text{score} \;=\; w \cdot r .$$
#
# A merge that halves $w$ halves the column, however much it still knows. The table below has the three numbers for every
# row, in percent.

# %%
answers.readability(frame).round(1)

# %%
alt = "A bar for each row of the table: the share of its answers that are right, well-formed but wrong, and unreadable."
desk.show(answers.outcomes(frame), alt)

# %% [markdown]
# *Look at* the hatched ends. A row with a long one lost the format; a row without one that scores low lost the content.
# Which rows that is, in words:

# %%
answers.lost_format(frame)

# %% [markdown]
# And this is what such answers look like: the items where the suspect's answer cannot be read, with what the other rows
# said to the same.

# %%
lost = answers.unreadable(frame, suspect)
looking.show(lost, rows, items)

# %% [markdown]
# *Look at* where such an answer breaks. Is it empty, or does it begin well and then stop, or turn into words? The
# experts were trained on answers of different shapes, one word here and four numbers there. Weight Average and Task Arithmetic add a fraction of each expert's task vector; TSV and both WUDIs add
# their combined one whole, because their authors fix the scale at 1. A likely reading is that habits of several
# experts then meet at full strength, and that the longest and strictest format suffers first. This notebook does not
# prove it. It can be tested: a table of your own whose row has `vary: {options.scale: [0.4, 1.0]}` merges and scores both.
#
# ## Seen on the picture
#
# For grounding, the answers can be drawn: the gold box is black and thick, and every row has its colour and its dash.
# The text below each picture gives the overlap, *intersection over union* (IoU); from 0.5 on it counts as right and has a
# tick. Benchmarks that ask for no boxes show a gallery here.

# %%
answers.see(frame, [row for row in rows if row != suspect], items)

# %% [markdown]
# *Look at* near misses. A box that overlaps by 0.4 is on the right object and still scores 0; on a picture of 96 pixels
# it is a pixel or two that are missing. And look for boxes on another object of the same kind: there the model did
# read "box", and did not tell left from right.
#
# ## What every merge misses, and what only the expert gets
#
# If all merges miss an item that the expert gets, its skill was lost in *every* way of merging that was tried; better
# coefficients may not bring it back. If only some miss it, choosing the coefficients well is worth something. Here
# an answer counts as right when its score is at least one half.

# %%
own, merged = answers.expert(plan, benchmark), answers.merges(plan)
missed, alone = answers.missed_by_all(frame, merged), answers.only(frame, own, merged)
answers.told(("items", frame), ("missed by every merge", missed), ("of them, right from the expert", alone))

# %%
looking.show(alone, rows, items)

# %% [markdown]
# *Look at* what these items have in common, if anything: are they crowded, are the objects small, does the question turn
# on a word for a place? Compare them with the first items of the benchmark, shown above.
#
# ## Two merges against each other
#
# The table compares Expert Merging with Task Arithmetic by their averages. Behind a difference of a few points
# stand many items on which they disagree, in both directions. First the ones that Expert Merging alone gets (or whichever
# rows you named in the parameters).

# %%
won, given_up = answers.right_where_wrong(frame, first, second), answers.right_where_wrong(frame, second, first)
answers.told(("right from the first row alone", won), ("from the second alone", given_up))
answers.see(won, [first, second], items)

# %% [markdown]
# And over all columns of the table:

# %%
sets = answers.counts(plan, first, second)
sets

# %%
alt = "For each benchmark two bars: the share of items that only the first row gets, and that only the second gets."
desk.show(answers.balance(sets), alt)

# %% [markdown]
# *Look at* the length of both bars, not only at the dot. The dot is the difference of the two accuracies; the bars say
# how many items had to change hands for it: two merges can be a point apart and disagree on many times as many items.
# This is why the tables compare rows *paired over items*: what both get, or both miss, says nothing
# about which is better, and only the items that change hands enter the error of the difference.
#
# ## Exercises
#
# **1. Another column.** Is the format lost in other columns, too? Find, for the suspect, the share of well-formed
# answers in every benchmark of the table.
#
# <details><summary>Solution</summary>
#
# ```python
# shares = {}
# for name in plan.benchmarks:
#     shares[name] = looking.well_formed(looking.items(plan, name, [suspect])).get(suspect)
# print(shares)
# ```
#
# Columns with one-word answers ask for "any text", which is never lost; look at those that ask for a form.
# </details>
#
# **2. What the format costs.** If the suspect's unreadable answers had been right as often as its readable ones, what
# would its score in this column be? Use the frame itself, not `answers`.
#
# <details><summary>Solution</summary>
#
# ```python
# if suspect in looking.asked(frame):
#     readable = frame[frame[f"{suspect} well-formed"].eq(True)]
#     score, would_be = frame[f"{suspect} score"].mean(), readable[f"{suspect} score"].mean()
#     print(f"{100 * score:.1f} % as it is, {100 * would_be:.1f} % if every answer could be read")
# ```
#
# The second number is an upper guess: answers that fall apart are likely the ones that the model was least sure of.
# </details>
#
# **3. Do merges fail together?** If two merges failed independently of each other, both would miss an item as often as the
# product of their error rates says. How much more often do they really miss it together?
#
# <details><summary>Solution</summary>
#
# ```python
# if {first, second} <= set(looking.asked(frame)):
#     wrong = frame[[f"{first} score", f"{second} score"]] < 0.5
#     together, independent = wrong.all(axis=1).mean(), wrong.mean().prod()
#     print(f"both wrong: {100 * together:.1f} %; if independent: {100 * independent:.1f} %")
# ```
#
# They start from the same base and the same experts, so they share most of their errors.
# </details>
