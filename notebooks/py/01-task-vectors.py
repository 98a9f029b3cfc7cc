# %% [markdown]
# # Task vectors: what merging adds up
#
# Every method in this kit starts from the same object. Take a base model and an expert that was fine-tuned from it,
# subtract the weights, and what is left, the *task vector*, is all that fine-tuning did. Merging adds such differences
# to the base again, several at once, in the hope that each still does its work beside the others.
#
# This notebook looks at that object on small models that fit into a repository. You will see
#
# 1. what a task vector is, entry by entry, and how large it is in each part of the network;
# 2. the angles between the experts' task vectors, and what they have to do with adding;
# 3. what happens to loss and accuracy on a walk along *one* task vector;
# 4. the loss over the plane of *two*, a landscape with the merges as points on it;
# 5. what TIES, DARE, TSV, Iso-C and WUDI do to one real matrix, and what that costs or brings.
#
# Everything is computed while you watch, from the committed miniature models of the `mini` profile, in about a minute on
# two cores. Numbers belong to these miniatures; what carries over to large models is the code and the questions. Change
# a parameter below and run all cells again.

# %% tags=["parameters"]
profile: str = "mini"  # the models: mini, smoke, or a folder or YAML file of yours (eval/profiles)
results: str = "results"  # the folder of all profiles' results
backbone: str = "mistral"  # mistral (text, the quickest), internvl or qwen2_vl (images), or your profile's
beside: str = "internvl"  # a second backbone of the profile, to compare angles with; "" for none
first: str = ""  # the two experts of walk and plane by name; "" for the last two
second: str = ""  # the other of them
scale: float = 0.4  # λ, what Task Arithmetic multiplies task vectors by
questions: int = 20  # of each expert's columns; more give smoother curves and take longer
fit_steps: int = 80  # of the short fit of Expert Merging in section 4; 0 for none
seed: int = 0  # of everything that is drawn: questions, DARE's entries, calibration samples

# %%
import torch
from IPython.display import Markdown

from emkit.methods import dare, iso_c, ties, tsv, wudi, wudi_v2
from eval import desk
from eval.lessons import landscape, landscape_figures, matrices, probe, task_vector_figures, task_vectors

desk.ready()

# %%
zoo = probe.open_zoo(profile, backbone, results)
vectors, pair = zoo.experts.vectors, task_vectors.pair(zoo, first, second)
name = task_vectors.matrix(zoo)  # one in the middle; or matrix(zoo, "…"), any merged tensor's name
Markdown(f"Experts of one base: **{', '.join(zoo.names)}**. Merged: {len(vectors.names)} tensors. Looked at: `{name}`.")

# %% [markdown]
# ## 1. What a task vector is
#
# For an expert $k$ with weights $\theta_k$, trained from a base with weights $\theta_{\text{base}}$,
#
# $$\tau_k = \theta_k - \theta_{\text{base}}$$
#
# (Section 3.1 of the paper). It has the shape of the model: one difference for each weight. In code it is the formula,
# tensor by tensor; adding it to the base gives the expert back.

# %%
base, experts = vectors.read(name)
theta, expert = base.float(), experts[0].float()
tau = expert - theta
print(f"{name}: {tuple(tau.shape)}, largest |θ_base| {theta.abs().max():.3f}, largest |τ| {tau.abs().max():.3f}")
print("θ_base + τ is the expert again:", torch.allclose(theta + tau, expert, atol=1e-6))

# %% [markdown]
# Here are all entries of that matrix, of the base (grey) and of every expert's task vector (lines). Look at the widths:
# fine-tuning leaves the weights roughly where they were and moves each of them a little, in both directions.

# %%
desk.show(
    task_vector_figures.entries(vectors, name),
    alt="Histogram of a matrix: the base's entries are spread, those of the task vectors are a narrow peak at zero.",
)

# %% [markdown]
# ### How large is it, and where?
#
# The size of a task vector says little by itself, so it is given relative to the weights that it changes,
#
# $$\frac{\lVert \tau_k \rVert}{\lVert \theta_{\text{base}} \rVert},$$
#
# first for all merged tensors together, then for each of them.

# %%
sizes = task_vectors.sizes(vectors)
task_vectors.whole(sizes).to_frame().style.format("{:.3f}")

# %% [markdown]
# In the maps, a row is a block of the network and a column a kind of matrix: `q`, `k`, `v` and `o` belong to attention,
# `gate`, `up` and `down` to the feed-forward part. Look for columns and rows that are brighter for *every* expert, where
# the kind of matrix or its depth decides how far it moves. Then look for cells that are bright for one expert alone,
# which are where it is special. Wherever the maps are uneven, one coefficient for a whole expert is a blunt tool;
# Expert Merging learns one for each tensor (notebook 02) or for chunks of it (notebook 04).

# %%
desk.show(
    task_vector_figures.size_maps(sizes),
    alt="A map for each expert: the size of its task vector relative to the base, by block and kind of matrix.",
)

# %% [markdown]
# ## 2. The angles between task vectors
#
# Whether two differences can be added without getting into each other's way is, to begin with, a question of direction:
#
# $$\cos(\tau_j, \tau_k) = \frac{\langle \tau_j, \tau_k \rangle}{\lVert \tau_j \rVert \, \lVert \tau_k \rVert}$$
#
# where all merged tensors are laid out as one long vector. A cosine of 1 is the same direction, 0 a right angle, −1 the
# opposite. Two *random* vectors of $d$ entries have a cosine of about $1/\sqrt{d}$: in a space this large, a right angle
# is what chance gives.

# %%
products = task_vectors.products(vectors)
cosines = task_vectors.cosines(products)
maps = {backbone: cosines}
if beside:
    maps[beside] = task_vectors.cosines(task_vectors.products(probe.open_zoo(profile, beside, results).experts.vectors))
Markdown(task_vectors.say_cosines(cosines, task_vectors.chance(vectors)))

# %%
desk.show(
    task_vector_figures.cosine_maps(maps),
    alt="Square maps of the cosines between the experts' task vectors, the numbers written in their cells.",
)

# %% [markdown]
# Off the diagonal, look at how far the cosines are from 0, and at the difference between the two zoos. The image experts
# (`internvl`) were trained on unlike data from a base that already knew how to answer. The text experts (`mistral`) come
# from a base that has read documents and hardly any dialogue, so besides its own subject each had to learn *one and the
# same* thing, to answer. What all experts had to learn is a direction that they can share.
#
# **Why right angles make addition work.** Task Arithmetic adds them all with one λ. How much of expert $k$ is then in
# the sum, measured along its own direction?
#
# $$\frac{\langle \sum_j \tau_j, \tau_k \rangle}{\lVert \tau_k \rVert^2} = 1 + \sum_{j \ne k} \cos(\tau_j, \tau_k) \frac{\lVert \tau_j \rVert}{\lVert \tau_k \rVert}$$
#
# With right angles it is exactly 1: each task vector is in the sum as if it were alone, and the others only add
# something *across* its direction. With a shared direction it is above 1: the sum goes too far along what all have
# learned, λ has to be smaller, and then what is special to each expert comes short. (With negative cosines it is below 1.)

# %%
task_vectors.contained(products).to_frame().style.format("{:.2f}")

# %% [markdown]
# Right angles are no guarantee, though. They say that the *weights* do not get into each other's way; the network between
# weights and answers is not linear, and what the other experts add across is a push in a direction in which this task
# has never been. Whether that does harm can only be measured, which is the next section.
#
# ## 3. A walk along one task vector
#
# Take one expert and go along its task vector, from behind the base to beyond the expert:
#
# $$\theta(\alpha) = \theta_{\text{base}} + \alpha\, \tau_k, \qquad \alpha \in [-0.5, 1.5]$$
#
# At every stop the model gets real questions of all experts' benchmarks. *Loss* is the mean of $-\ln p$ over the tokens of
# the gold answers; *right answers* are counted by a simple rule (`probe.accuracy` tells it). Neither is a table's metric,
# for which harnesses ask hundreds of questions; with so few, a single answer is a step of several percent, and the loss,
# which sees every token, is the smoother of the two. First the losses at both ends, on each expert's own questions:

# %%
live, asked = zoo.live, landscape.tasks(zoo, questions, seed)
ends = landscape.ends(live, asked)
ends.style.format("{:.3f}")

# %%
walk = landscape.walk(live, pair[0], asked, landscape.steps(-0.5, 1.5, 0.25))
Markdown(landscape.say_walk(walk, pair[0]))

# %%
desk.show(
    landscape_figures.walk(walk, pair[0]),
    alt="Loss and right answers of every task along one expert's task vector; base and expert are marked.",
)

# %% [markdown]
# Look at the thick line first, from the base (α = 0) to the expert (α = 1): is there a hill in between? Merging lives on
# there being none, so that whoever stops anywhere on the way has a working model; and on a part of the way bringing more
# than its part, so that a λ below 1 already does a lot. Beyond α = 1 look for a cliff: if there is none, the expert is a
# point on the way like any other. Behind the base (α < 0) the ability is *removed*, which Task Arithmetic's authors use
# to make models forget.
#
# Then look at the thin lines. Where one falls, this expert has learned something that the other task needs as well; where
# it rises, what it adds is in the other's way, and the further one goes the more.
#
# ## 4. Two at once: a landscape
#
# Now two task vectors with a coefficient each,
#
# $$\theta(\alpha_1, \alpha_2) = \theta_{\text{base}} + \alpha_1 \tau_1 + \alpha_2 \tau_2,$$
#
# a whole plane of models. Its corners are known: (0, 0) is the base, (1, 0) and (0, 1) are the experts. Merges of the
# two are points on it:
#
# * **Weight Average**, the mean of two experts, is (½, ½);
# * **Task Arithmetic** with scale λ is (λ, λ), a point of the diagonal;
# * **Expert Merging** learns coefficients from unlabeled questions, one for each expert *and each tensor*. Its point on
#   the plane is where its coefficients lie on average, and the model itself lies off the plane. Here it is a short fit,
#   starting at Task Arithmetic's point.

# %%
two = {label: asked[label] for label in pair}
plane = landscape.plane(live, pair, two, landscape.steps(-0.2, 1.4, 0.2))
print(f"{len(plane)} models, each asked the questions of {pair[0]} and {pair[1]}")

# %%
merges = {"base": {}, pair[0]: {pair[0]: 1.0}, pair[1]: {pair[1]: 1.0}}
merges |= {"Weight Average": dict.fromkeys(pair, 0.5), f"Task Arithmetic, λ = {scale:g}": dict.fromkeys(pair, scale)}
if fit_steps:
    learned = landscape.short_fit(zoo, pair, scale, fit_steps, samples=2, seed=seed)
    merges |= {"Expert Merging": learned, "its mean coefficients": landscape.means(learned)}

# %%
points = landscape.points(live, pair, merges, two)
desk.show(
    landscape_figures.plane(plane, points, ends, pair),
    alt="Maps of both losses, and of what is left of the way to both experts, with the merges as points.",
)
Markdown(landscape.say_plane(plane, points, ends, pair))

# %% [markdown]
# Dark is a high loss. In each of the first two panels, look at the direction of the bands. Were they vertical on the left
# and horizontal in the middle, each task would depend on its own coefficient alone and any pair could be merged by adding.
# Where they bend or lean, the other expert helps or costs. The third panel puts both together in a common unit, the part
# of the way from the base to each task's own expert that is *left*,
#
# $$\frac{L_k(\theta) - L_k(\theta_k)}{L_k(\theta_{\text{base}}) - L_k(\theta_k)},$$
#
# 100 % for the base, 0 for a model as good as both experts at once. Look where the valley lies, how far from it the
# experts themselves are, and whether the diagonal, where Task Arithmetic has to stay, goes through its lowest place.
#
# Here are the points in numbers: where they lie, their losses, and what they leave.

# %%
table = points.join(landscape.left(points, ends)["mean"].rename("left, mean"))
table.style.format("{:.3f}")

# %%
Markdown(landscape.say_off_plane(points, ends, "Expert Merging", "its mean coefficients"))

# %% [markdown]
# If you let the fit run, compare the last two rows. They have the same average coefficients, but in "Expert Merging" every
# tensor has its own. What separates the two is what the freedom of a coefficient for each tensor buys *off* the plane,
# and no map of two numbers can show it.
#
# ## 5. What the other methods do to one real matrix
#
# Task Arithmetic and Expert Merging weigh task vectors. The other methods change them before or while they combine
# them. Their formulas are short; in this kit each is a function on plain tensors, and here they all get the same K
# matrices $\tau_1 \dots \tau_K$ of shape $m \times n$:
#
# * **TIES** keeps of each τ the largest entries, elects a sign for each place, and averages those that have it;
# * **DARE** drops entries at random and enlarges the others by 1/(1 − p), so that each entry stays right on average;
# * **TSV** keeps each expert's leading singular directions and makes those of different experts orthogonal;
# * **Iso-C** takes the sum and gives all its singular directions the same strength;
# * **WUDI** looks for the matrix $M$ that disturbs every expert least, $\min_M \sum_k \lVert (M - \tau_k)\tau_k^\top \rVert^2 / \lVert \tau_k \rVert^2$, starting from
#   the sum; **WUDI v2** does that for the leading directions alone.
#
# ### Signs first
#
# TIES is built on an observation: task vectors disagree about signs. Here is how many experts want to change an entry at
# all, when each may keep its largest entries only, and where those that do pull in both directions.

# %%
taus, density = vectors.tau(name), 0.2  # TIES keeps the largest 20 %
conflicts = {"all entries": matrices.signs(taus, 1.0), f"largest {100 * density:g} %": matrices.signs(taus, density)}
desk.show(
    matrices.signs_figure(conflicts),
    alt="Bars: how many experts keep an entry, before and after trimming, and in which part signs conflict.",
)
Markdown(matrices.say_signs(*reversed(conflicts.values())))

# %% [markdown]
# Look at the hatched parts: on the left all entries are kept, on the right only the largest. What trimming takes away of
# them is disagreement among small entries, which the sum would have averaged out anyway; what remains hatched is what the
# election decides.
#
# ### The merged matrix, seen

# %%
torch.manual_seed(seed)
drop = 0.9  # DARE's p, here far above the profile's so that it is seen
rate = zoo.profile.options("wudi", {}).lr  # of the size of the profile's task vectors
made = {"sum": taus.sum(dim=0), "TIES": ties.ties(taus, density)}
made |= {f"DARE, p = {drop:g}": dare.dare(taus, drop).sum(dim=0), "TSV": tsv.tsv(taus), "Iso-C": iso_c.iso_c(taus)}
made |= {"WUDI": wudi.wudi(taus, lr=rate), "WUDI v2": wudi_v2.wudi_v2(taus, lr=rate), "first expert": taus[0]}

# %%
desk.show(
    matrices.heat(made),
    alt="A corner of each method's matrix in colours: many entries of TIES and DARE are zero, the others are dense.",
)

# %% [markdown]
# Grey is an entry that is exactly zero. Compare "sum" with its neighbours: TIES leaves the places alone where nobody has
# a large entry; DARE with this drop rate keeps scattered entries and makes them large; the methods on singular
# values change every entry a little, so that the eye sees no difference. For those one has to look at the singular values,
# the strengths of a matrix' directions.

# %%
each = dict(zip(zoo.names, taus))
desk.show(
    matrices.spectra(made, each),
    alt="Singular values, largest first, of the experts' matrices and of the merged ones; Iso-C's are all equal.",
)

# %% [markdown]
# A steep curve means that few directions carry most of the change. (A step of the vertical axis is a factor.) Iso-C's is
# flat by definition: what was weak is raised, what was strong is lowered. Compare the sum's largest values with those of
# the experts (left): where experts share a direction, the sum has it several times over, and look which methods take it
# back. And look at DARE's tail: dropping at random is right on average for every entry, but not neutral for directions;
# it adds noise, which has no preferred direction and so lifts all of them.
#
# ### In numbers
#
# `size` is the norm relative to the sum's; `entries` the share that is not zero; `rank` an effective rank, the number of
# directions if all were equally strong; `smallest` and `largest share` how much of an expert's own task vector is in the
# result, 1 being all of it; `interference` is what WUDI minimises, relative to the sum's.

# %%
matrices.described(made, taus).style.format("{:.2f}")

# %% [markdown]
# ### And the answers?
#
# What a matrix looks like is not what it is worth. So all merged tensors go through each method, with the profile's
# options, and the merged models are asked. Two cautions: λ is not searched here but taken as each method's default (and
# `scale` for those that add), while a table searches it on validation items; and a loss on a few questions is not a
# score. The tables (`make reproduce-table1`, `2`, `3`) have the ranking that counts.

# %%
merged = landscape.merges(zoo, scale, seed=seed)
losses = landscape.scored(live, {"base": 0.0} | merged, asked)
desk.show(
    landscape_figures.rest(landscape.left(losses, ends)),
    alt="A table in colours: what each method leaves of the way to each expert, in percent, and the mean.",
)

# %% [markdown]
# In each cell stands what is left of the way from the base to that column's expert, in percent; pale is good, and a dash
# stands where the expert itself is no better than the base on these few questions. Look for a row that is pale
# everywhere, and for methods that are good at one task and bad at another: the compromise that each method makes was
# chosen by its formula, not by the tasks. Expert Merging's idea is to let unlabeled questions choose it, which is the
# next notebook.
#
# ## Exercises
#
# Each can be done with what is above, in a few lines. Solutions are folded up below each.
#
# **1. Does the direction matter, or the size alone?** Replace the task vector of `pair[0]` by one with the same entries
# in a random order within each tensor, so that every size stays what it was, and go the same way. What does it do to the
# expert's own questions, and to the others'?
#
# Hint: `live.set` takes anything that gives a merged tensor for a name; `task_vectors.Changed(vectors, change)` is such a
# thing, for a `change` from the K task vectors of a tensor to what is added to the base.
#
# <details><summary>Solution</summary>
#
# ```python
# number = zoo.names.index(pair[0])
# change = lambda tau: task_vectors.shuffled(tau[number], seed)
# control = {"base": 0.0, "expert": {pair[0]: 1.0}, "shuffled": task_vectors.Changed(vectors, change)}
# control = landscape.scored(live, control, asked)
# control.style.format("{:.3f}")
# ```
#
# In the expert's own column the direction is everything: compare "expert" with "shuffled", which has the same sizes. Then
# compare the columns of the *other* tasks: where both are alike, the expert is no more than noise to that task; where
# "expert" is lower, it brings something that the task can use; where it is higher, it does more harm than noise would.
#
# </details>
#
# **2. Where does an ability sit?** Add the task vector of `pair[0]` in one block of the network at a time and see how far
# the loss on its own questions falls. Do the blocks' gains add up to that of the whole task vector?
#
# Hint: `Coefficients.constant(vectors.names, …)` has a value for each tensor and expert; `experts.models.backbone.merged_block(name)`
# is the block of a tensor.
#
# <details><summary>Solution</summary>
#
# ```python
# from emkit.coefficients import Coefficients
#
# block_of = {name: zoo.experts.models.backbone.merged_block(name) for name in vectors.names}
# by_block = {"base": 0.0, "all blocks": {pair[0]: 1.0}}
# for block in sorted(set(block_of.values())):
#     whole = Coefficients.constant(vectors.names, {k: float(k == pair[0]) for k in zoo.names})
#     only = {name: value * (block_of[name] == block) for name, value in whole.values.items()}
#     by_block[f"block {block}"] = Coefficients(whole.experts, only)
# by_block = landscape.scored(live, by_block, {pair[0]: asked[pair[0]]})[pair[0]]
# gain = (by_block["base"] - by_block).drop("base")
# gain.to_frame("loss won").style.format("{:.3f}")
# ```
#
# Compare the first row with the sum of the others. Where the parts together win less than the whole, blocks work together: a change in one
# is worth more when the other has changed as well. Importance (notebook 03) asks the same question for every tensor.
#
# </details>
#
# **3. How much of a task vector can be thrown away?** DARE's authors drop nine of ten entries of a large language model's
# task vector and lose nothing. Does that hold here? Drop more and more of one expert's τ, with the rest enlarged by
# 1/(1 − p), and watch the loss on its own questions.
#
# <details><summary>Solution</summary>
#
# ```python
# torch.manual_seed(seed)
# number, thinned = zoo.names.index(pair[0]), {}
# for p in (0.0, 0.2, 0.5, 0.8, 0.9, 0.95, 0.99):
#     thinned[f"p = {p:g}"] = task_vectors.Changed(vectors, lambda tau, p=p: dare.dare(tau[number], p))
# kept = landscape.scored(live, {"base": 0.0} | thinned, {pair[0]: asked[pair[0]]})[pair[0]]
# kept.to_frame("loss").style.format("{:.3f}")
# ```
#
# Look for the first p at which the loss has clearly risen. What is kept is right on average, and the noise that dropping
# adds has a variance of p/(1 − p) times the entries' squares. A wide network has many entries to average such noise out,
# a miniature of a hundred dimensions few, so do not expect the authors' nine of ten here.
#
# </details>
