# %% [markdown]
# # Which layers matter? Figures 3, 4 and 5
#
# Expert Merging gives every weight matrix ℓ and every expert k a coefficient α. Which of these matrices deserve more than
# one? The paper answers with a single number for each, the *layer importance* I_ℓ (Section 3.3), and looks at it from
# three sides in its Figures 3 (parameters and coefficients by kind of matrix), 4 (importance by kind and depth) and 5
# (coefficients by kind and depth). A "layer" there is one weight matrix: a block of the language model has seven, four of
# the attention (Q, K, V, O) and three of the MLP (Gate, Up, Down).
#
# Here the three figures are computed for the miniature models of all three backbones and set beside what the paper says
# about its own, sentence by sentence. Then the question that the figures raise: I_ℓ multiplies three factors, so which of
# them decides it? You will see that
#
# - what share of the parameters is MLP follows from a model's configuration alone, and the paper's numbers come out of it,
# - how far the learned coefficients differ from one kind of matrix to the next, and whether seeds agree on it, and
# - how much of I_ℓ you would have known before any fit, from the number of parameters.
#
# The models here have some hundred thousand merged parameters in four or five blocks. Nothing below reproduces a number
# of the paper; it asks the same questions of models that you can hold in your hand.

# %% tags=["parameters"]
profile: str = "mini"  # whose models: mini, smoke, or the folder or YAML file of your own profile
results: str = "results"  # the folder of all profiles' results, from which learned coefficients are read
backbones: str = "internvl, qwen2_vl, mistral"  # which models, in the figures' order
steps: int = 20  # of the short fit where a table has not been run; 0: none, Task Arithmetic's λ stands in
samples: int = 1  # calibration samples of each expert in that fit
scale: float = 0.3  # λ that a short fit starts from, where none has been chosen on validation items

# %%
from IPython.display import Markdown

from eval import desk
from eval.lessons import importance, importance_readings, probe, short_fits

desk.ready()

# %% [markdown]
# ## Where the coefficients are from
#
# Importance starts from coefficients that Expert Merging has learned. If the tables have been run, those of every seed lie
# beside the scores and are read; otherwise a short fit is made here, with the profile's own options, on fewer samples and
# for fewer steps. The list says which it was: a short fit has moved α less far, so its shares are more alike.

# %%
zoos = {name.strip(): probe.open_zoo(profile, name.strip(), results) for name in backbones.split(",")}
learned = {name: short_fits.learned(zoo, steps, samples, scale) for name, zoo in zoos.items()}
Markdown(short_fits.origins(learned))

# %% [markdown]
# ## The formula
#
# $$I_\ell = \mathrm{Norm}\Big(\sum_{k=1}^K |\alpha_k^\ell| \; s_k^\ell \; n_\ell\Big), \qquad s_k^\ell =
# \frac{\mathrm{mean}\,|\tau_k^\ell|}{\sum_j \mathrm{mean}\,|\tau_k^j|}$$
#
# Three factors: how strongly expert k is mixed into matrix ℓ, how far its fine-tuning moved an entry of ℓ on average, and
# how many entries n there are. "Norm" divides by the sum over all merged tensors, so that the I_ℓ sum to 1. (What s is
# "normalised across layers" over, the paper leaves open: here it is each expert's own layers, so that an expert that was
# trained for longer does not decide alone.)
#
# The table of factors has a line for each merged tensor and expert, and the five lines after it are the formula.

# %%
first = next(iter(zoos))
coefficients, vectors = learned[first].seeds[min(learned[first].seeds)], zoos[first].experts.vectors
factors = importance.factors(coefficients, vectors, first)
factors.head(len(vectors.experts))

# %%
s = factors.mean_tau / factors.groupby("expert").mean_tau.transform("sum")
product = factors.alpha.abs() * s * factors.n
raw = product.groupby(factors.tensor).sum()
by_hand = raw / raw.sum()
by_hand.nlargest(5).rename("importance").to_frame()

# %% [markdown]
# The function that Expert Merging++ itself calls, `emkit.alignment.importance.layer_importance`, gives the same numbers;
# `importance.layers` calls it for every seed and adds where each tensor lies. The largest difference between the two:

# %%
frames = {name: importance.layers(learned[name], zoo.experts.vectors, name) for name, zoo in zoos.items()}
theirs = frames[first][frames[first].seed == min(learned[first].seeds)].set_index("tensor").importance
float((theirs - by_hand).abs().max())

# %% [markdown]
# ## Figure 3: parameters and coefficients
#
# How many parameters a matrix has needs no weights at all. The published models' share of MLP parameters comes from their
# configurations: transformers builds each model without memory for its weights, and the backbone's own rule says which of
# its tensors are merged. The paper says "roughly 87 %" for Qwen2-VL and InternVL and puts 19 % of Mistral's into attention.

# %%
shapes = {name: importance.published(name) for name in zoos}
Markdown(importance.mlp_shares(shapes, frames))

# %% [markdown]
# **What to look at.** On the left the bars are the miniatures, the diamonds the published shapes: the miniatures are less
# dominated by the MLP, because narrow models need relatively wide attention. On the right are the learned coefficients:
# each bar is a kind's mean |α|, divided by the sum over kinds. If nothing distinguished the kinds, every bar would reach
# the dashed line at one seventh. Lines on the bars reach from the least to the largest seed, where there are several:
# compare them with the differences between bars before believing a ranking.

# %%
desk.show(
    importance.figure3(frames, shapes),
    alt="Bars by submodule. Left, shares of parameters: the MLP's three matrices are far above the attention's four, "
    "most of all in the published shapes. Right, shares of the coefficients, beside a line at one seventh.",
)

# %% [markdown]
# ## Figure 4: importance by kind and depth
#
# Blocks are sorted into thirds of the depth. (With five blocks that is two, one and two; a share is therefore the mean over
# a cell's matrices, divided by the sum over cells, so that a third with more blocks is not larger for that.)
#
# **What to look at.** First the step from the attention's four kinds to the MLP's three: is it larger than anything that
# happens inside either group? Then the slope within a kind, from light (early) to dark (late): the paper finds importance
# rising with depth for every kind.

# %%
desk.show(
    importance.figure4(frames),
    alt="Bars of the share of importance by submodule and third of the depth, one panel a backbone. Gate, Up and Down "
    "are about twice as high as Q and O, and K and V are lowest.",
)

# %% [markdown]
# ## Figure 5: coefficients by kind and depth
#
# The same picture of |α| alone, that is, of the one factor that is *learned*. Equal bars would all have the height 1/21.
#
# **What to look at.** Whether dark bars are above light ones, as the paper finds on all three backbones, and whether the
# seeds agree about it.

# %%
desk.show(
    importance.figure5(frames),
    alt="Bars of the share of the coefficients by submodule and third of the depth, one panel a backbone, "
    "with lines for the range of the seeds.",
)

# %% [markdown]
# ## Beside what the paper says
#
# The paper describes its figures in words, without a table of the numbers. Each line is one of its sentences; each column
# says whether the same sentence is true of the miniature, and with which numbers. The two sentences on who leads in
# importance cannot both be true of InternVL: if Down is the single largest, Gate and Up are not the two largest.
#
# A "no" is no refutation. The miniatures were trained from nothing on drawn images and short texts; the published experts
# are fine-tuned from large pretrained models. What these answers can show is whether a sentence is a property of the
# *method* (then it should hold here too) or of the models.

# %%
Markdown(importance_readings.claimed(frames, shapes))

# %% [markdown]
# ## What decides I_ℓ?
#
# A product is decided by the factor that varies most. For each factor: the ratio of its 90th to its 10th percentile over
# the blocks' matrices. A factor with a ratio near 1 hardly has a say.

# %%
Markdown(importance_readings.reaches(frames))

# %% [markdown]
# So what would I_ℓ be with parameters alone, which needs no fit and no expert? In the figure each point is a matrix, and
# its height is I_ℓ divided by its share of the parameters: 1 means that coefficients and task vectors have changed nothing.
#
# **What to look at.** How far points leave the line. Compare that with how many times larger a Gate is than a K (last
# column of the table above Figure 3): a smaller factor reorders matrices of
# similar size, and no others.

# %%
roles = importance_readings.all_roles(learned, zoos)
desk.show(
    importance_readings.against_parameters(roles),
    alt="For each merged matrix, importance over its share of the parameters, by submodule, one panel a backbone; "
    "points scatter around one.",
)

# %% [markdown]
# The table says the same in numbers, for each simpler measure: its rank correlation with I_ℓ, which part of the budget it
# would put in the same place, and for how many tensors Eq. 4 (notebook `04-expert-merging-plus-plus`) would give exactly
# as many chunks, with the paper's κ = 1.2 and a budget of one coefficient a tensor.

# %%
importance_readings.agreements(roles)

# %% [markdown]
# ## Exercises
#
# 1. **Another reading of "normalised across layers".** `layer_importance` also offers `normalise="joint"`: one sum over all
#    experts and layers. What is the largest relative change of an I_ℓ, and why is it small where experts were trained alike?
# 2. **Grouped queries.** Mistral-7B has 8 key-value heads for 32 heads. With as many key-value heads as heads, what would
#    its MLP's share of the merged parameters be? (Hidden width 4096, MLP width 14336: pencil and paper will do.)
# 3. **Who gains most?** Which five tensors does I_ℓ lift most above their share of the parameters, and are they deep or
#    shallow?
#
# <details>
# <summary>Solution 1</summary>
#
# ```python
# from emkit.alignment.importance import layer_importance
#
# joint = layer_importance(coefficients, vectors, normalise="joint")
# change = max(abs(joint[name] / by_hand[name] - 1) for name in vectors.names)
# print(f"the largest relative change of an importance is {100 * change:.1f} %")
# ```
#
# Jointly normalised, an expert whose task vector is twice as long counts twice. Experts that were trained for the same
# number of steps at one learning rate have task vectors of similar length, so that the two readings nearly agree.
#
# </details>
#
# <details>
# <summary>Solution 2</summary>
#
# ```python
# attention, mlp = 4 * 4096 * 4096, 3 * 4096 * 14336  # Q, K, V and O are all square then
# share = mlp / (mlp + attention)
# print(f"{100 * share:.1f} % instead of 80.8 %")
# ```
#
# </details>
#
# <details>
# <summary>Solution 3</summary>
#
# ```python
# found = roles[first]
# lift = found[importance_readings.ALL] / found[importance_readings.ALONE]
# top = found.assign(lift=lift).nlargest(5, "lift")[["block", "submodule", "stage", "lift"]]
# print(top)
# ```
#
# </details>
