# %% [markdown]
# # 00 · Reading the tables
#
# The paper *Expert Merging* (arXiv 2509.25712) claims its results in thirteen tables. Before anyone reproduces them, it
# pays to read them closely: what a number can say depends on how many questions stand behind it, on how it was rounded,
# and on what else was tried. Nothing is run here but arithmetic, and no model is needed: the tables lie as CSV files in
# `eval/paper`, and every statement below is computed from them.
#
# You will see which averages follow from their cells, where one configuration is printed with two sets of numbers, which
# percentages are impossible, how exact each column can be, and which gains survive a test. Most of it takes the paper's
# side; none of it says whether the method works. That is what the other notebooks and the table notebooks are for.

# %% tags=["parameters"]
tables: str = "eval/paper"  # the folder of the published tables, table1.csv to table13.csv, and metrics.yaml
level: float = 0.05  # what counts as significant
repeats: int = 5  # how often the paper says that every experiment was repeated (Section 4.1)

# %%
from IPython.display import Markdown, display

from eval import desk
from eval.lessons import granularity, precision, published, published_figures, published_words

desk.ready()

# %%
paper, metrics = published.read(tables), published.metrics(tables)
paper[1].round(2)

# %% [markdown]
# Above is Table 1, merging five experts of InternVL2.5, as printed. Rows are models: the base, its five experts, merges by
# earlier methods, a model trained on everyone's data together (*Mixture Training*), and the paper's own two. Columns are
# benchmarks, in percent, and the last is their plain mean, on which the paper ranks. A dash is a model that was not asked.

# %% [markdown]
# ## 1. Do the averages follow from their cells?
#
# With $x_c$ the exact score of column $c$ of $C$, printed to two decimals, the average is
#
# $$\bar x = \frac{1}{C}\sum_{c=1}^{C} x_c .$$
#
# Each printed cell is within half a hundredth of $x_c$, so the mean of printed cells is within half a hundredth of
# $\bar x$. A printed average less than one hundredth away is therefore possible whatever the cells were, and beyond that
# it is not. Binary fractions would blur this (`0.005` is not representable), so hundredths are compared as whole numbers.

# %%
sums = published.averages(paper)
display(sums.groupby(["table", "rule"]).size().unstack(fill_value=0))
desk.show(
    published_figures.averages(sums),
    alt="Printed minus recomputed average in hundredths, one line a table; one row of Table 3 is far outside.",
)

# %% [markdown]
# Look at the two bands. A rounded average lies in the blue one, a truncated one in the dashed frame; where they overlap the
# two rules agree. Points of one colour belong to one backbone: see in which band each colour stays. One row is so far off
# that only an arrow shows it.

# %%
display(Markdown(published_words.averages(sums)))
Markdown("The strongest earlier method by the cells:\n\n" + published_words.rivals(paper))

# %% [markdown]
# Truncating is harmless; that it happens in all tables of one backbone and in none of the others only says that two
# scripts were at work. A row whose average is too low by points is another matter, because the tables are *ranked* by
# averages: what counts as "the strongest baseline" depends on it. Which of the cells or the average is the slip cannot be
# told from here.
#
# Averages also hide who leads where. Merging is worth while where each expert leads the columns of its own ability. These
# are the columns in which it does not, and two rows that share most of their cells:

# %%
display(published.leaders(paper))
published.twins(paper)

# %% [markdown]
# In the columns listed, a merge that beats "the expert" has not beaten the best single model. And where two methods agree
# in most columns to the last digit, they are hardly two methods on these models, or one row was copied.

# %% [markdown]
# ## 2. One configuration, several tables
#
# The paper prints its default run of Expert Merging in the main table, in the ablations (again as "no chunking"), in the
# summary, and as one row of each sweep: over the regularisation weight $\gamma$, whose default is 5 for InternVL and 0.8
# for the others, and over the number $N$ of unlabeled samples, whose default is 5, 10 and 5 (Appendix B.2). A run without
# regulariser is a row of the ablations and, as $\gamma = 0$, of a sweep. If nothing else differed, the numbers should agree
# wherever they stand.

# %%
differing = published.disagreements(paper)
differing

# %%
desk.show(
    published_figures.disagreements(paper, differing),
    alt="Differences per column of each configuration that two tables print with different numbers.",
)
Markdown(published_words.same(differing))

# %% [markdown]
# Each panel shows the difference, column by column, between two places that should hold the same run, where more than one
# column differs; the orange bar is the average. Look at the scale, and keep the orange bars in mind for section 5, whose gains are of that size.
#
# What can be concluded: something differs between these runs that the paper does not name, such as another draw of
# samples, task weights $\beta$, or a version of the code. What cannot: which of the two is right. The comparisons *within*
# one table may still be sound.

# %% [markdown]
# ## 3. Which percentages are possible? The granularity test
#
# A share of $n$ questions answered rightly is $k/n$ with a whole number $k$. On MATH-Vision the score rests on $n = 76$
# questions, so there are 77 possible percentages among the 10,001 that two decimals can print. Brown and Heathers (2017)
# call the check GRIM, *granularity-related inconsistency of means*:
#
# $$\exists\, k \in \mathbb{N}: \quad \Bigl|\,100\,\tfrac{k}{n} - x\,\Bigr| \le 0.005 \quad\text{(rounded)}\qquad
# \text{or}\qquad 0 \le 100\,\tfrac{k}{n} - x < 0.01 \quad\text{(truncated)}.$$
#
# It needs items that are right or wrong. It says nothing for VizWiz and TextVQA, where an item can score tenths and the
# steps are finer than the print; nothing for MathVista, a mean of three overlapping means; nothing for AlpacaEval, whose
# win rate can be weighted by the judge's certainty; and it is blind for $n$ above 10,000, where every value fits. $n$ is
# that of the public benchmarks (`eval/columns`, profile `paper`), for the paper gives none.

# %%
display(metrics[["items", "step", "what it is"]])
tested = granularity.tested(published.cells(paper), metrics)
granularity.power(tested)

# %% [markdown]
# Read the last three columns together. Where *fit* equals *values* though few would fit *by chance*, the values are shares
# of these $n$ items: the test has told us $n$. Where *fit* is no more than chance, the values are shares of something else.
# That is so for one column: the paper's Qwen2-VL grounding scores come from another toolchain (LMMs-Eval, Section 4.1), whose
# RefCOCOg holds other items than InternVL's evaluation. It is no error, and shows that the test can fail.

# %%
own = published.cells(paper).query("backbone == 'internvl' and column == 'RefCOCOg'")["percent"]
found = granularity.sizes(own, 6000)
Markdown(f"Every n up to 6,000 of which all InternVL's RefCOCOg values can be shares: **{found}**")

# %%
desk.show(
    granularity.picture(tested, ["MATH-Vision", "HumanEval", "MBPP", "GSM8K", "ChartQA"]),
    alt="Distance of every printed value from a whole number of answers; all but two are as near as print allows.",
)
granularity.impossible(tested)

# %% [markdown]
# Each mark is a printed value, placed by its distance from the nearest whole number of right answers; the blue band is what
# two decimals allow (its left edge belongs to the next value). A cross is impossible. With hundreds of values typed by hand,
# a slip or two is what one would expect: look at the neighbours of a cross before reading more into it.

# %% [markdown]
# ### Single runs or means of five?
#
# "All experiments are repeated five times and results are averaged" (Section 4.1). A mean of five runs is a multiple of
# $1/(5n)$; it falls on a multiple of $1/n$ only if the five numbers of right answers add up to a multiple of five, one time
# in five if the totals fall anywhere. Only the paper's own methods are counted, which draw samples and so differ from run
# to run; a method without randomness gives the same run five times.

# %%
runs = granularity.repeated(tested, repeats)
display(runs)
Markdown(published_words.repeats(runs, repeats))

# %% [markdown]
# The last column is the probability that *all* values of a benchmark fit, if they were means of runs that differ. It is
# tiny everywhere. The calm reading: a table of single runs is an honest thing, but it carries no information about seeds,
# and the section on noise below has to look for it elsewhere.

# %% [markdown]
# ## 4. How exact can a column be?
#
# If $n$ independent questions are answered and a share $p$ rightly, another $n$ questions of the same kind would give
# another share; its standard error is
#
# $$\mathrm{se} = \sqrt{\frac{p\,(1-p)}{n}}, \qquad
#   \mathrm{se}(\bar x) = \frac{1}{C}\sqrt{\sum_c \mathrm{se}_c^2}.$$
#
# Partial credit makes it smaller, so this is an upper bound there; expressions about one picture are not independent, so
# for the grounding columns it is a lower one. For MathVista the smallest of the three parts is taken.

# %%
rows = precision.main_rows(paper, "Expert Merging")
columns = {title: precision.columns_of(row, metrics) for title, row in rows.items()}
desk.show(
    published_figures.errors(columns),
    alt="Standard error of each column, three backbones; those of MATH-Vision and HumanEval are the largest by far.",
)

# %%
precision.averages_of(rows, metrics)

# %% [markdown]
# The bar is one standard error of the row *Expert Merging*; the percentage beside it is that column's share of the
# average's variance. Look for the longest bar of each panel: an average over ten columns is not an average over tens of
# thousands of questions if most of its uncertainty sits in the 76 of one column. The next table has the standard error of
# the whole average, and the lines below it say what the step from Expert Merging to Expert Merging++ is made of.

# %%
Markdown(published_words.one_item(precision.one_item(paper, metrics)))

# %% [markdown]
# ## 5. Which gains survive a test?
#
# Two models answer the same questions, so the right test is paired: of $b$ questions that only the first got right and $c$
# that only the second did, is $b$ too large for a fair coin (McNemar)? The tables print $b - c$, but neither $b$ nor $c$.
# So the gains are tested from both sides:
#
# - **as if the questions were different ones** (unpaired, $z = (p_1-p_2)/\sqrt{\mathrm{se}_1^2+\mathrm{se}_2^2}$), which is
#   too strict where the models agree on most questions. What passes here, passes;
# - **in the best case**, $c = 0$: every question that changed was won. What fails here cannot be shown by any test;
# - in between, the largest share of questions on which the models may disagree for the gain to be significant.
#
# Several gains are looked at, so the unpaired p values are corrected by Holm's rule. The rival is the strongest earlier
# method, by printed and, where that is another one, by recomputed averages.

# %%
found = precision.gains(paper, metrics, level)
desk.show(
    published_figures.gains(found, level),
    alt="Headline gains with unpaired intervals; most cross zero, those against no regulariser do not.",
)
Markdown(published_words.gains(found))

# %% [markdown]
# A blue point is ahead whatever the items; an orange one could be shown or not, depending on items that are not printed; a
# green one is out of reach. Look at the pairs "Expert Merging++ − Expert Merging", and at the rows without regulariser.
# "Cannot be shown" is not "is zero": a true gain of a third of a point may well be there, but these benchmarks are too
# small to see it. Gains of one colour do not become stronger by being many: the same few rows enter most of them.

# %%
found.drop(columns=["table", "stderr", "verdict"]).round(3)

# %% [markdown]
# Column by column the question is the same. Here is the first row of Table 1's claim, against the strongest baseline.
# Where the gain is large and $n$ too, as in grounding, no pairing is needed: this is where Expert Merging's lead over
# earlier methods is solid.

# %%
precision.by_column(paper[1].loc["Expert Merging"], paper[1].loc["WUDI v2"], metrics, level).round(3)

# %% [markdown]
# ## 6. Noise, and choosing the best of several
#
# The spread over seeds is not printed, but the sweeps hold a trace of it: where a curve should be smooth, neighbouring
# points differ by noise, and $\sqrt{\tfrac12\,\overline{(x_{i+1}-x_i)^2}}$ estimates its standard deviation (with a real
# trend it is too large). The best of $m$ equally good, noisy runs is ahead of their mean by about
# $\mathrm{E}[\max_m] \cdot \sigma$ by luck alone, 1.7 σ for $m = 13$.

# %%
display(precision.sweeps(paper).round(2))
desk.show(
    published_figures.sweeps(paper, metrics),
    alt="Averages over gamma and over N for three backbones; the default is circled, the highest point of every curve.",
)

# %% [markdown]
# The circle is the paper's default, the band one standard error of the average over items. Look where the circle sits in
# each curve, and how far the rest of the curve leaves the band: only small $\gamma$ on InternVL and $\gamma = 0$ on Mistral
# do so. Elsewhere the recommendation of a default rests on differences within the noise of items, and if it was
# chosen by these numbers, its own score is a little too good. The default run of section 2 that two tables print differently
# gives a second, rough estimate of a run's standard deviation:

# %%
twice = differing.query("configuration == 'Expert Merging'")["differs by"].min()
value, low, high = precision.deviation_from_pair(twice)
Markdown(f"From two runs: {value:.1f} points, 95 % interval {low:.1f} to {high:.0f} (one degree of freedom).")

# %% [markdown]
# ## What can be concluded, and what cannot

# %%
Markdown(published_words.conclusions(paper, metrics))

# %% [markdown]
# None of this says that the method does not work, or that a table is wrong beyond the cells named. It says how much the
# printed numbers can carry: large effects (regularisation where coefficients run away, grounding on InternVL) stand firmly,
# small ones (chunks, single terms of the loss, a default's exact value) need the answers themselves. That is why this
# kit keeps every answer and compares rows item by item, and why its tables show intervals.
#
# ## Exercises
#
# **1.** Leave MATH-Vision, the smallest column, out of Table 2. Which model is best then, and by how much does Expert
# Merging++ lead Expert Merging?
#
# <details><summary>Solution</summary>
#
# ```python
# ranked = precision.without(paper, 2, ["MATH-Vision"])
# lead = ranked["Expert Merging++"] - ranked["Expert Merging"]
# print(ranked.index[0], round(lead, 2))
# ```
#
# Mixture Training leads then, and of the lead of 0.29 points there remain 0.04: two questions of 76 made the rest.
#
# </details>
#
# **2.** LMMs-Eval's RefCOCO+ validation set has 3,805 rows. Can Qwen2-VL's RefCOCO+ values be shares of so many? How many of
# them would fit by chance?
#
# <details><summary>Solution</summary>
#
# ```python
# values = published.cells(paper).query("backbone == 'qwen2_vl' and column == 'RefCOCO+'")["percent"].unique()
# fitting = sum(granularity.fits(value, 3805) for value in values)
# print(fitting, "of", len(values), "fit; by chance", round(granularity.by_chance(3805) * len(values), 1))
# ```
#
# No more than by chance: these are no shares of 3,805 questions asked once. A row of that set has several expressions, and
# the authors patched the tool, so the number of questions remains open.
#
# </details>
#
# **3.** How many HumanEval problems must Expert Merging++ win, losing none, to be significantly ahead of Expert Merging? And
# how many questions of 5,000? Why is the answer the same?
#
# <details><summary>Solution</summary>
#
# ```python
# needed = next(gained for gained in range(1, 165) if precision.best_case(gained) < 0.05)
# print(needed, precision.most_discordant(needed, 164), precision.most_discordant(needed, 5000))
# ```
#
# Six, whatever the size: a coin that shows heads six times of six has $p = 2 \cdot 0.5^6 = 0.031$. McNemar's test looks only
# at questions on which the models disagree. The size matters in another way: a larger benchmark has more of them.
#
# </details>
