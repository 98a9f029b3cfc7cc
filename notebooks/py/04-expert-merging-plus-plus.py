# %% [markdown]
# # Expert Merging++: chunks where it matters?
#
# Expert Merging learns one coefficient α for each weight matrix and expert. Expert Merging++ cuts some matrices into
# *chunks*, contiguous parts of the flattened tensor, and learns a coefficient for each; others get no chunk at all and
# keep the α of the first fit. Who gets how many is decided by the layer importance I_ℓ of notebook `03-importance`:
#
# $$m_\ell = \left\lfloor B \cdot \frac{I_\ell^{\,\kappa}}{\sum_j I_j^{\,\kappa}} \right\rfloor \qquad\text{(Eq. 4)}$$
#
# B is the budget of coefficients for each expert, κ how steeply it goes to the important. The paper uses κ = 1.2 and a B of
# 0.9 to 1.2 times the number of merged tensors L. Three questions are asked of this here, on a model small enough to fit
# and break many times over:
#
# 1. What do κ and B do, and what does the rounding ⌊·⌋ do?
# 2. Is importance a good way to spend the budget? The *same number* of chunks is spent evenly, at random, and on the least
#    important tensors first, and each is fitted in the same way.
# 3. Does importance predict damage? One tensor at a time is put back to the base, and the loss on validation questions
#    says what it was worth.

# %% tags=["parameters"]
profile: str = "mini"  # whose models: mini, smoke, or the folder or YAML file of your own profile
backbone: str = "mistral"  # mistral, or internvl and qwen2_vl, which take three to five times as long
results: str = "results"  # the folder of all profiles' results, from which learned coefficients are read
budget: float = 1.0  # B of Eq. 4, in units of L
kappa: float = 1.2  # κ of Eq. 4
steps: int = 30  # of each fit
samples: int = 2  # calibration samples of each expert
draws: int = 3  # how many times the chunks are dealt at random
questions: int = 40  # validation questions of each expert
scale: float = 0.4  # λ that the first fit starts from, where none has been chosen on validation items

# %%
from IPython.display import Markdown

from emkit.alignment.importance import allocate_chunks, layer_importance
from eval import desk
from eval.lessons import chunks, interference, lesions, probe, short_fits

desk.ready()

# %% [markdown]
# ## The first fit, and the importance that comes of it
#
# Expert Merging++ is two fits. The first is Expert Merging itself; its coefficients are read where the backbone's table has
# been run, and otherwise fitted here, shorter.

# %%
zoo = probe.open_zoo(profile, backbone, results)
vectors, live = zoo.experts.vectors, zoo.live
learned = short_fits.learned(zoo, steps, samples, scale)
first = learned.seeds[min(learned.seeds)]
Markdown(short_fits.origins({backbone: learned}))

# %% [markdown]
# Both formulas are functions of emkit, the ones that the method itself calls. The table adds up, for each kind of matrix,
# how much importance it has, how many chunks Eq. 4 gives it, and how many of its tensors go without.
#
# **What to look at.** The last column. A tensor whose share of the budget is below one coefficient is rounded down to
# none: it stays where the first fit left it.

# %%
importance = layer_importance(first, vectors)
counts = allocate_chunks(importance, budget, kappa)
chunks.by_submodule(importance, counts, backbone)

# %% [markdown]
# ## κ and B as dials
#
# A row of pictures for each κ, a column for each B; a bar for each merged tensor, the most important on the left, and a
# cross for each that gets no chunk.
#
# **What to look at.** Three things. Down a column chunks move to the left and pile up there. Along a row the budget grows,
# and yet the number of chunks (in each title) stays below B · L, since what ⌊·⌋ cuts off is not spent elsewhere. And in the
# upper left corner nobody gets anything: with κ = 0 every tensor's share is exactly B / L, which for 0.9 is rounded to 0.
# The paper calls κ = 0 "near-uniform"; with a budget below L it is uniformly nothing.

# %%
desk.show(
    chunks.dials(importance, [0.9, 1.0, 1.2, 2.0], [0, 0.6, 1.2, 3]),
    alt="Small bar charts of chunks for each tensor, rows of kappa from 0 to 3, columns of budgets from 0.9 to 2. Bars "
    "are level for kappa 0, absent there for the budget 0.9, and pile up on the left as kappa grows.",
)

# %% [markdown]
# With a kernel, the sliders below redraw the same thing for any pair, with the tensors' names (block and kind of matrix).
# Where there is none (on GitHub, on a page), the pictures above stand in.

# %%
chunks.slider(importance)

# %% [markdown]
# ## Equal budgets, spent otherwise
#
# If importance is what matters, then the same chunks spent differently should do worse. *Evenly*: the same total, one for
# this tensor, one for the next but one, and so on. *At random*: the same counts, dealt to tensors by lot, several times over.
# *By its inverse*: the same counts, the largest to the least important tensor. Beside these stands a control that spends
# more: *one each*, which is Expert Merging simply fitted on for as many steps, with L coefficients for each expert.

# %%
fit = short_fits.ShortFit(zoo, steps=steps, samples=samples, scale=scale)
sizes = {name: vectors.numel(name) for name in vectors.names}
ways = chunks.budgets(counts, importance, sizes, draws)
merges = chunks.fitted(fit, first, ways)

# %% [markdown]
# Every merge is measured three times: by its *alignment loss* on the calibration samples, which is what the fit minimises
# (Eq. 1 and 2, summed over tasks with their β), by the mean loss of the gold answers to validation questions in nats a
# token, and by the share of these questions that it answers exactly. The last is not a table's score: few questions, no
# harness, no judge.

# %%
asked = [question for task in zoo.names for question in probe.questions(zoo, task, questions)]
table = chunks.compared(merges, fit, live, asked)
table.round(4)

# %% [markdown]
# **What to look at.** How far apart the draws at random lie from each other: that is what chance does. If importance knew
# something, its point should lie outside that range, on the left for the losses and on the right for accuracy. The dashed
# line is where all of them started.

# %%
desk.show(
    chunks.comparison(table),
    alt="Points for each way of spending the same chunks, in three panels: alignment loss, validation loss, accuracy; "
    "a dashed line is at the first fit. The list below says where importance lies.",
)

# %%
Markdown(chunks.said(table))

# %% [markdown]
# The paper compares importance with chunking *every* layer twice ("chunk all layers (2x)", Tables 5 to 7), which spends
# about twice the budget. The comparison above holds the budget fixed, which is the question whether importance chooses
# well. It is a short fit on few samples: with `steps`, `samples` and `draws` above you can ask it more thoroughly.
#
# ## What chunks learn
#
# A matrix that is cut in two learns two coefficients for each expert, and they start alike. How far apart do they end?
#
# **What to look at.** Dots joined by a line are the chunks of one matrix for one expert; the short black line is the first
# stage's α, where they all began. Long lines say that the halves want different things. Dots that moved together say that
# more steps would have done the same without chunks.

# %%
desk.show(
    chunks.within(merges[chunks.IMPORTANCE], first),
    alt="For each tensor of several chunks and each expert, the learned coefficients of its chunks as joined dots, and "
    "the first stage's coefficient as a short line.",
)

# %%
chunks.spread(merges[chunks.IMPORTANCE]).nlargest(5, "difference").round(3)

# %% [markdown]
# Chunks are cut along the flattened matrix, so that a matrix in two is its upper and lower rows. Nothing in the model
# singles out that place, other than that rows of Q, K and V belong to heads: a chunk is a convenient part, not a meaningful
# one.
#
# ## Does importance predict damage?
#
# A lesion test, as in neurology: take one thing away and see what suffers. One merged tensor at a time is put back to the
# base's, everything else stays merged, and the validation questions are asked again. If I_ℓ says how much a tensor matters
# for the merge, an important one's loss should cost more.

# %%
damage = lesions.damage(live, first, asked)
frame = lesions.predictors(first, vectors, backbone).join(damage)
lesions.worst(frame).round(4)

# %% [markdown]
# The table shows the five whose loss costs most, with their place in the order of importance. In the figure the same
# damage stands over four things that might have foretold it: importance; the number of parameters alone; the mean length
# ‖τ_k‖ of the experts' task vectors; and the length of what the merge really adds to the base there, ‖Σ_k α_k τ_k‖.
#
# **What to look at.** A rising cloud means that the measure foretells damage. ρ is Spearman's rank correlation over
# tensors, with a 95 % interval from drawing tensors anew 2,000 times. Points below the zero line are tensors without whose
# task vectors the merge has a *lower* loss.

# %%
desk.show(
    lesions.scatter(frame),
    alt="Rise of the validation loss when one tensor is reset, over importance, parameters, norm of the task vectors, "
    "and norm of what the merge adds; a point a tensor, with Spearman's correlation above each panel.",
)

# %%
Markdown(lesions.verdict(frame))

# %% [markdown]
# Importance is mostly a count of parameters (notebook `03-importance`), so a fair question is whether it says anything
# *beyond* size. Among tensors of one size, the correlation is:

# %%
lesions.within_sizes(frame)

# %% [markdown]
# Two cautions. A lesion measures what a tensor's task vectors do for these questions *given all others*; two tensors that
# can stand in for each other both look harmless. And where coefficients are cheap to learn is not the same as where task
# vectors are indispensable: Eq. 4 could spend its budget well even if importance predicted no damage. That is why both
# tests are here.
#
# ## An aside: why WUDI stops early
#
# WUDI Merging, the strongest baseline here, learns no coefficients: for each matrix it looks for an $M$ with a small
# $\sum_k \|(M - \tau_k)\tau_k^\top\|^2 / \|\tau_k\|^2$, by 300 steps of Adam from $\sum_k \tau_k$. The objective is a
# quadratic form, so its minimum can be written down. Why does nobody use it?
#
# Along an eigenvector of $C = \sum_k n\,\tau_k^\top\tau_k / \|\tau_k\|^2$ the objective is a parabola whose curvature is the
# eigenvalue. **What to look at.** How many decades the lines fall. Where an eigenvalue is small, any $M$ is as good as any
# other to the objective; not to the model, whose inputs may point there.

# %%
spectrum = interference.spectra(vectors, backbone)
desk.show(
    interference.falling(spectrum),
    alt="Eigenvalues of the quadratic form of WUDI's objective, largest first, on a logarithmic scale; a panel a kind "
    "of matrix, a line a block: they fall over several decades.",
)

# %% [markdown]
# Now the same objective, left at different places: Adam after 0 (that is $\sum_k \tau_k$), 30, 300 and 3,000 steps, the
# minimum itself, and the minimum with a ridge, $+ \rho\,\|M - \sum_k \tau_k\|^2$, which keeps $M$ at its start exactly where
# the eigenvalue is below ρ: emkit's method `ridge`, which is not in the paper. Beside each: the length of what it adds, what
# is left of the objective, and the loss on the validation questions.

# %%
rate = zoo.plan.settings("wudi").lr if "wudi" in zoo.plan.rows else 3e-4
merges = interference.ways(zoo.experts, rate, (0, 30, 300, 3000), (0.01, 0.1, 1.0, 10.0))
left = interference.stopped(live, merges, asked)
left.round(3)

# %%
Markdown(interference.verdict(left, spectrum))

# %% [markdown]
# **What to look at.** The objective and the loss do not fall together: the minimum has the least of the one and much of the
# other. Stopping early *is* WUDI's regulariser, by a number of steps at a rate in the weights' own units; ρ says the same
# openly, in units of the eigenvalues.
#
# ## Exercises
#
# 1. **An empty budget.** For which κ between 0 and 1 does a budget of 0.9 L first give some tensor a chunk? Try it in steps
#    of 0.1.
# 2. **Chunk all layers (2x).** Give every tensor two chunks, as the paper's ablation does, fit, and compare the alignment
#    loss with that of *one each* and *by importance*.
# 3. **A larger lesion.** Put a whole block back to the base instead of one tensor. Which block costs most? Is the damage
#    more than the sum over its tensors?
#
# <details>
# <summary>Solution 1</summary>
#
# ```python
# kappas = [k / 10 for k in range(11)]
# given = chunks.counts(importance, [0.9], kappas).sum().droplevel("budget")
# print(given)
# print("the first κ with a chunk:", given[given > 0].index.min())
# ```
#
# </details>
#
# <details>
# <summary>Solution 2</summary>
#
# ```python
# twice = fit.chunked(first, dict.fromkeys(vectors.names, 2))
# print("two each:", round(fit.loss(twice), 4))
# print(table.loc[[chunks.ONE_EACH, chunks.IMPORTANCE], "alignment loss"].round(4))
# ```
#
# </details>
#
# <details>
# <summary>Solution 3</summary>
#
# ```python
# from functools import reduce
#
# whole = probe.loss(live.set(first), asked)
# for block, own in frame.groupby("block"):
#     without = reduce(lesions.reset, own.index, first)
#     costs = probe.loss(live.set(without), asked) - whole
#     print(f"block {block}: {costs:+.4f} nats, its tensors one by one {own.damage.sum():+.4f}")
# ```
#
# </details>
