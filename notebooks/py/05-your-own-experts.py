# %% [markdown]
# # 05 · Your own experts
#
# Two people have fine-tuned the same language model, each for a skill of their own. You have their folders and want one
# model with both skills. This notebook goes the whole way: from folders to a merged model that is checked, documented and
# evaluated, with the commands you would type.
#
# So that there is something to merge, two experts are trained here, in about half a minute, from the miniature Mistral of
# this repository: one by full fine-tuning, the other as a LoRA adapter, saved as transformers and peft save them. Point the
# parameters at folders of your own and nothing is trained; the rest stays the same. What you will see: what a merge needs,
# what it refuses and in which words, what it leaves behind, and whether it worked.

# %% tags=["parameters"]
base: str = "results/zoo/mistral/base"  # the model that all experts were fine-tuned from: a folder or a hub id
experts: str = ""  # your experts, "name=folder, name=folder"; empty: two are trained here
prompts: str = ""  # for learned methods, "name=file.jsonl, …" of {"prompt": …}, at least a handful for each expert
tests: str = ""  # to count right answers, "name=file.jsonl, …" of {"prompt": …, "answer": …}
folder: str = "build/own-experts"  # where everything of this notebook is written
steps: int = 80  # of training each expert
scale: float = 0.5  # λ of Task Arithmetic, and where the learned coefficients start
seed: int = 0  # of the training

# %%
from IPython.display import Markdown

import emkit
from eval import desk
from eval.lessons import commands, training

desk.ready()

# %% [markdown]
# ## 1. Two skills
#
# The first expert learns opposites, the second writes numbers in digits. Every fact is asked in five ways, four of which are
# used for training and one is kept for the test, another one for each fact; so a right answer in the test is more than a
# sentence learned by heart. The base has read stories and sums and answers neither.
#
# `training.fine_tune` is an ordinary loop of thirty lines: the tokenizer's chat template, a loss on the answer's tokens,
# AdamW. One choice in it matters for merging: **only the blocks' matrices are trained.** Embeddings, norms and the output
# head stay the base's in a merge, and an expert that leans on its own loses that part.

# %%
own = training.prepare(folder, base, experts, prompts, tests, steps, seed)
if own.losses:
    desk.show(training.curves(own.losses), alt="The loss of both trainings falls below 0.1 nats per token.")

# %% [markdown]
# Look at where the curves end: below a tenth of a nat per token the training questions are answered. (With folders of your
# own there is no curve.) What each training left is a folder like any other; the second holds only the adapter's factors.

# %%
Markdown(commands.listing(own.experts))

# %% [markdown]
# ## 2. Open and compare
#
# `emkit.Experts` reads configurations and headers, no weights. It compares the models by the parameter that each tensor
# becomes, so that layouts may differ, and says at once what does not fit. An adapter is read as the base with its product
# $W + \tfrac{\alpha}{r} B A$ added, without writing that down. From here on, a *task vector* is $\tau_k = \theta_k -
# \theta_{\text{base}}$, over the merged tensors.

# %%
opened = emkit.Experts(own.base, own.experts)
alone = {name: {name: 1.0} for name in own.experts}
before = training.skills(opened, {"base": 0.0, **alone}, own.tests)
before

# %% [markdown]
# Rows are models, columns the tests, in percent of right answers, letter by letter. Each expert should lead its own column
# and the base none. If an expert of yours does not beat the base in its own column, stop here: merging cannot help it.
#
# ## 3. The recipe
#
# `emkit init` writes a recipe that explains itself; a line behind `#` holds anyway. These are its first lines:

# %%
commands.emkit("init", f"{folder}/merge.yaml", *commands.models(own.base, own.experts))
Markdown(commands.head(f"{folder}/merge.yaml", 24))

# %% [markdown]
# Expert Merging learns one coefficient $\alpha_k^\ell$ for every merged tensor $\ell$ and expert $k$, so that the merged
# model behaves like expert $k$ on expert $k$'s prompts:
#
# $$\min_\alpha \sum_k \beta_k\bigl(\mathcal{L}_{\text{hid}}^{(k)} + \mathcal{L}_{\text{logit}}^{(k)}\bigr) + \gamma\,
# \frac{1}{KL}\sum_{k,\ell}\bigl|\alpha_k^\ell - \bar\alpha\bigr|,\qquad
# \theta^\ell = \theta_{\text{base}}^\ell + \sum_k \alpha_k^\ell\,\tau_k^\ell .$$
#
# The paper tunes the task weights $\beta_k$ on validation items, which you may not have. Unless you give them, $\beta_k$ is
# one over the base's own loss on task $k$, so that every task counts in units of what there is to learn (`beta: auto`).
#
# It needs prompts, a few for each expert and *without answers*: the expert gives them itself. Whatever a flag says stands in
# place of the recipe's line. `--dry-run` checks everything that can be checked before weights are read, and stops.

# %%
learning = ["--samples", "8", "--scale", scale, "--option", "gamma=0.05"]
learning += ["--option", "optimiser.steps=60", "--option", "optimiser.lr=0.05"]
run = [f"{folder}/merge.yaml", "--out", f"{folder}/merged", "--overwrite", *commands.prompts(own.prompts), *learning]
commands.emkit("merge", *run, "--dry-run")

# %% [markdown]
# A miniature needs larger steps than the defaults, which are made for large models; that is what the options are for.
#
# ## 4. Merge
#
# The same command without `--dry-run`. Tensors are read and written one at a time; a merge that is killed goes on where it
# was; and the folder gets its name only after it was loaded again, every value finite, and a text run through transformers'
# own class.

# %%
commands.emkit("merge", *run)

# %% [markdown]
# ‖τ‖/‖θ‖ says how far each expert is from the base. If one of yours is ten times as far as another, its task vector will
# drown the other's in any sum with equal coefficients.
#
# What was learned, tensor by tensor; shades go from the smallest to the largest coefficient. Look for blocks and kinds of
# tensors in which one expert is trusted and the other is not: that is what a single λ cannot do.

# %%
commands.emkit("coefficients", "show", f"{folder}/merged")

# %% [markdown]
# ## 5. The card
#
# The folder's `README.md` is a model card in the Hub's form: what was merged, by which formula, with which options and where
# each value is from, hashes of all inputs, and the command. Here is its beginning; `emkit_merge.json` holds the same for
# programs, `coefficients.json` every coefficient, `history.json` every step of the fit.

# %%
Markdown(commands.card(f"{folder}/merged"))

# %% [markdown]
# ## 6. Did it work?
#
# The merged folder is opened like an expert and asked the test questions. Beside it: Task Arithmetic, whose one λ is all
# there is to choose, at the fit's start and at 1, and four methods that need no prompts, the last of which (one linear
# system for each matrix) is not in the paper. All of these are made in memory from the opened experts; nothing is written.

# %%
merged = training.skills(emkit.Experts(own.base, {"merged": f"{folder}/merged"}), {"Expert Merging": 1.0}, own.tests)
others = {f"Task Arithmetic λ={value:g}": value for value in (scale, 1.0)}
others |= {"TIES": emkit.ties(opened), "TSV": emkit.tsv(opened), "WUDI": emkit.wudi(opened)}
others["Ridge"] = emkit.ridge(opened)
results = training.together(before, training.skills(opened, others, own.tests), merged)
desk.show(training.bars(results), alt="Right answers in percent of base, experts and merges on the two tests.")
results

# %% [markdown]
# Look at the smaller bar of each pair: a merge is worth as much as the skill that it has lost more of. Two skills learned
# by a model of a million parameters share most of its directions, so do not expect a merge to keep both in full. And a test
# of some thirty questions is coarse; notebook 00 has what that means.

# %%
Markdown(training.verdict(results, {name: len(lines) for name, lines in own.tests.items()}))

# %% [markdown]
# In Python the same merge can be changed and looked at without writing anything. Its history has the terms of the loss for
# each task:

# %%
options = {"samples": 8, "scale": scale, "gamma": 0.05, "optimiser": {"steps": 60, "lr": 0.05}}
options |= {"cache": f"{folder}/.emkit-cache", "progress": False}
learned = emkit.expert_merging(opened, prompts=own.prompts, **options)
desk.show(learned.history.plot(), alt="Losses of both tasks and mean coefficients of both experts over the steps.")

# %% [markdown]
# The first two panels are the two losses of each task, Eq. 1 and Eq. 2. Every step sees another sample, so the lines are
# jagged: look at their level, first against last. Where one task's rises while the other's falls, weights of your own
# (`--option beta.NAME=2`, 1 for the others) say which matters more. The third panel is the mean coefficient of each expert, from its start at
# λ: look which expert the fit has come to trust more, and compare with the bars above.
#
# ## 7. What goes wrong in practice
#
# Most merges fail on something other than the method. Each of the next commands is a dry run with a copy of the first expert
# in which one thing is as it often is. An *error* stops the merge in one line; a *warning* lets it go on.

# %%
name = next(iter(own.experts))
for how in list(commands.DAMAGES)[:4]:
    broken = commands.damaged(own.experts[name], f"{folder}/{how.replace(' ', '-')}", how)
    flags = ["--method", "ties", "--out", f"{folder}/never", "--dry-run"]
    commands.emkit("merge", *commands.models(own.base, {name: broken}), *flags)

# %% [markdown]
# In order: a tokenizer that was trained again speaks another language, and no weight can be compared; a chat template that
# differs is only said, because one of the two has to be chosen; missing embeddings do no harm, since they are not merged
# and the base's are taken; a missing matrix does. What can only be seen in the weights themselves comes with the merge:

# %%
broken = commands.damaged(own.experts[name], f"{folder}/trained", "trained embeddings")
flags = ["--method", "task_arithmetic", "--out", f"{folder}/without", "--overwrite"]
commands.emkit("merge", *commands.models(own.base, {name: broken}), *flags)

# %% [markdown]
# `--tensors all` would merge embeddings, norms and biases too. The reverse case, an adapter for another base, is refused by
# the base's name in its configuration (`--allow adapter_base`, where it only has another name).
#
# ## 8. A table of your own
#
# A table like the paper's is two YAML files: a profile that names the models, and a table that names rows and columns. A row
# is a method, a column a benchmark of `eval/columns`; one of your own is a YAML file and a JSONL of items there
# (`eval/columns/README.md`).
#
# ```yaml
# # mine.yaml
# title: Ours
# backbone: causal_lm
# columns: [GSM8K, MBPP]
# rows:
#   - {id: base, label: Base, method: checkpoint, model: base}
#   - {id: ta, label: "Task Arithmetic, λ = {}", method: task_arithmetic, vary: {scale: [0.3, 0.5, 1.0]}}
#   - {id: em, label: Expert Merging, method: expert_merging}
# compare: [[em, ta_0.5]]
# ```
#
# `.venv/bin/python -m eval reproduce mine.yaml --profile mine-profile.yaml` merges, asks, scores and compares item by item;
# the profile is a copy of `eval/profiles/mini/mistral.yaml` with your folders in it.
#
# ## Exercises
#
# **1.** Which λ of Task Arithmetic has the best mean of both tests? Try 0.2 to 1.4.
#
# <details><summary>Solution</summary>
#
# ```python
# values = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4]
# curve = training.skills(opened, {f"{value:g}": value for value in values}, own.tests)
# print(curve["mean"].idxmax(), curve["mean"].max())
# ```
#
# Choose λ on other questions than those you report, or the best value is a little too good: it was picked by its luck, too.
#
# </details>
#
# **2.** An adapter of rank 16 changes each matrix by a matrix of rank 16. Is that so for the second expert's
# task vector, and what rank has the first expert's?
#
# <details><summary>Solution</summary>
#
# ```python
# import torch
#
# tau = opened.tau("model.layers.0.mlp.up_proj.weight")  # [experts, rows, columns]
# ranks = [int(torch.linalg.matrix_rank(matrix, rtol=1e-3)) for matrix in tau]
# print(dict(zip(opened.labels, ranks)))
# ```
#
# Full fine-tuning uses every direction, if only a little; the adapter exactly its rank.
#
# </details>
#
# **3.** Give the two experts different coefficients: 0.4 for the first and 1.0 for the second. Which skill gains?
#
# <details><summary>Solution</summary>
#
# ```python
# first, second = opened.labels
# uneven = {"even": {first: 0.4, second: 0.4}, "uneven": {first: 0.4, second: 1.0}}
# print(training.skills(opened, uneven, own.tests))
# ```
#
# One coefficient per expert is already a dial between skills; one per tensor and expert is what Expert Merging learns.
#
# </details>
