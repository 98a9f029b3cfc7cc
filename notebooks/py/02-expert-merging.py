# %% [markdown]
# # Expert Merging, one equation at a time
#
# Several experts were fine-tuned from one base model: one chats, one calculates, one writes programs. **Expert Merging**
# ([arXiv 2509.25712](https://arxiv.org/abs/2509.25712)) makes one model of them without training any weight and without
# a single label. It learns one number for each expert and each weight tensor, which says *how much of what this expert
# has learned here goes into the merged model*, and it learns these few numbers by asking the experts themselves.
#
# This notebook builds the method up from nothing, on models that are small enough (about a million parameters) to be
# fitted while you read. You will
#
# 1. merge experts by hand, with a slider,
# 2. see what the method compares, token by token: hidden states (Eq. 1), logits (Eq. 2), and what holds the coefficients
#    back (Eq. 3), and check that a real fit logs, at its first step, exactly the numbers that you have computed,
# 3. watch a fit, and take it apart: what each term buys, how β trades one task for another, how few samples are
#    enough, and what the regulariser does.
#
# It needs no knowledge of the paper. Where a result here speaks against the paper it says so: what is below is a sample
# of *one* small zoo of models, in which the code is the same as for large ones, and the numbers are not.
#
# The next cell holds everything that one would want to change. All fits of the notebook take about a minute in all on
# two cores; they are kept, so that the second run takes seconds.

# %% tags=["parameters"]
profile: str = "mini"  # the models: a profile's name, or your own folder or YAML file
results: str = "results"  # where tables' runs lie, and where the fits of this notebook are kept
backbone: str = "mistral"  # which of the profile's models: mistral, internvl, qwen2_vl
initial: float = 0.4  # ᾱ, where coefficients start: Task Arithmetic's λ (of this zoo, as chosen on validation items)
samples: int = 5  # N, unlabeled samples of each task (paper: 5 for Mistral)
tokens: int = 48  # least response tokens of a sample, which is a pack of short questions (the tables' runs: 256)
steps: int = 16  # optimiser steps of the fits that are compared (the tables' runs: 80)
long_steps: int = 48  # optimiser steps of the fit that is watched
lr: float = 0.06  # learning rate of AdamW on the coefficients (the tables' runs: 0.02, over more steps)
questions: int = 20  # validation questions of each task
held: int = 3  # samples of each task that no fit sees
betas: str = "0.1, 0.3, 1, 3, 10"  # values of one task's β
counts: str = "1, 2, 5, 10, 20"  # values of N
gammas: str = "0, 0.05, 0.5, 5"  # values of γ, the regulariser's weight
pictures: str = "internvl"  # which of the profile's models the first slider merges
seed: int = 0  # of the calibration draw and the order of samples

# %%
import torch

from emkit.alignment import objectives
from eval import desk
from eval.lessons import alignment, dials, fit_checks, fit_figures, fit_words, fits, probe

desk.ready()

# %% [markdown]
# ## 1. One number for each expert and tensor
#
# What fine-tuning changed is the difference of two checkpoints, expert *k*'s **task vector** $\tau_k = \theta_k -
# \theta_\text{base}$. Adding it to the base gives the expert back; adding *a part* of several gives a merge. For each
# weight tensor $\ell$ (the paper says layer, and its analysis and code count tensors: the query projection of block 3 is
# one; embeddings, norms and the output layer are not merged and stay the base's),
#
# $$\theta_\text{merged}^\ell \;=\; \theta_\text{base}^\ell + \sum_{k=1}^{K} \alpha_k^\ell\, \tau_k^\ell .$$
#
# Everything on the right is given, except the **coefficients** $\alpha_k^\ell$. With one and the same value everywhere
# this is *Task Arithmetic*, the simplest of all merges. The slider below is just that, one α for each expert: move it,
# and the merged model is made anew and asked again, in a fraction of a second.

# %%
pictured = probe.open_zoo(profile, pictures, results)
dials.AlphaDial(pictured, start=0.3)

# %% [markdown]
# *(Sliders answer while no cell is running. Where there is no Python at all, as on GitHub, you see a figure in their
# place.)* Look at how an answer changes
# along its line. At α = 0 of its own expert a question is mostly not answered as it should be; somewhere on the way the
# answer flips; and it may flip back, since the other experts pull as well. Where it flips differs from task to task.
# Turn one expert up until its questions are answered, then choose another task and see what that has cost.
#
# Finding a good place by hand is feasible for one number for each expert. But why should the same number be right for
# every tensor? One for each tensor gives better merges, and far too many sliders:

# %%
zoo = probe.open_zoo(profile, backbone, results)
most = int(max(samples, *fits.numbers(counts)))
given = {"samples": samples, "tokens": tokens, "most": most, "held": held, "seed": seed}
setup = fits.setup(zoo, initial=initial, steps=steps, lr=lr, **given)
fit_words.sizes(setup)

# %% [markdown]
# So they have to be learned. From what? There are no labels, and we do not want any: whoever merges downloaded models
# rarely has the data that they were trained on. What one does have is the experts.
#
# ## 2. The experts are the teachers
#
# Take a few *questions* of each task, without answers. Each task's **own expert** answers them. The merged model is then
# to behave, on the chat expert's questions, as the chat expert does; on the maths expert's questions as that one; and so
# on. This is knowledge distillation from K teachers at once, each on its own ground, with hardly anything to train.

# %%
fit_words.answered(setup)

# %% [markdown]
# That is all the data there is: the questions are unlabeled, and the right-hand column is what an expert *said*, be it
# right or wrong. A **sample** is one question with its answer in the paper; here, where answers are a line or a word, a
# sample packs as many questions as it takes to fill a few dozen tokens, so that N = 5 samples still say something.
#
# What does it mean "to behave as the expert does"? We let both read the same text, the question and the expert's own
# answer, and compare them wherever a token of that answer is predicted. At each such position a model has two things to
# show: what it *thinks* (its hidden state, a vector, in the middle of the network) and what it *says* (its logits, a
# number for each token of the vocabulary, at the end). Here is the merge at its start, α = ᾱ everywhere, next to
# the expert of the last task:

# %%
task, other = zoo.names[-1], zoo.names[0]
at_start = alignment.seen(zoo.live.set(setup.start), setup.calibration, batch=1, seed=seed)
part = at_start[task]
{"positions, width": tuple(part.merged_hidden.shape), "positions, vocabulary": tuple(part.merged_logits.shape)}

# %% [markdown]
# ## 3. Eq. 1: think alike
#
# The first loss asks the merge to arrive at the expert's hidden state $h_\ell$, at the output of some blocks $\ell \in
# \mathcal{S}$. In the paper's experiments that is only the middle one:
#
# $$\mathcal{L}^{(k)}_\text{hid} = \sum_{\ell\in\mathcal{S}} \mathbb{E}_{x\sim\mathcal{D}_k}
#   \big\| h_\ell(x;\theta_\text{merged}) - h_\ell^{(k)}(x) \big\|_2^2 \tag{1}$$
#
# In code it is as short. `weight` is the expectation: a mean over samples of the mean over each one's positions.
# The function below is the one that fits call. By default it divides by the width of the vectors, as the authors'
# code does, so that the loss does not grow with the size of the model.

# %%
by_hand = (part.merged_hidden - part.expert_hidden).square().mean(dim=1)  # one number for each position
each_hidden = objectives.hidden_alignment(part.merged_hidden, part.expert_hidden)
assert torch.allclose(by_hand, each_hidden)
hidden = float(part.weight @ each_hidden)
hidden

# %% [markdown]
# ## 4. Eq. 2: speak alike
#
# The second loss compares the next-token distributions. Expert and merge each turn logits $z$ into probabilities, and
# the KL divergence says how surprised somebody would be who expected the merge and met the expert:
#
# $$\mathcal{L}^{(k)}_\text{logit} = T^2\; \mathbb{E}_{x\sim\mathcal{D}_k}\,
#   \mathrm{KL}\!\left(\mathrm{softmax}\big(z^{(k)}(x)/T\big) \,\big\|\, \mathrm{softmax}\big(z(x;\theta_\text{merged})/T\big)\right)
#   \tag{2}$$
#
# It is 0 where both would say the same with the same confidence, and it is large where the expert is sure of a token
# that the merge thinks unlikely.

# %%
p = (part.expert_logits / 1.0).softmax(dim=1)  # T = 1
q = (part.merged_logits / 1.0).softmax(dim=1)
by_hand = 1.0**2 * (p * (p.log() - q.log())).sum(dim=1)
each_logit = objectives.logit_alignment(part.merged_final, part.head, part.expert_final, part.expert_head)
assert torch.allclose(by_hand, each_logit, atol=1e-5)
logit = float(part.weight @ each_logit)

# %% [markdown]
# The function takes final hidden states and output layers instead of logits, and goes through the vocabulary in blocks:
# logits of a large vocabulary would take more memory than everything else in a fit. The value is the same, as the cell
# has just checked.
#
# Averages hide what is going on, so look at one answer of the expert, token by token:

# %%
desk.show(fit_figures.along(part, answer=0), alt="Bars over an answer's tokens: hidden-state error above, KL below.")
peak = fit_figures.worst(part, answer=0)
fit_words.heaviest(part, 0, peak, each_logit)

# %% [markdown]
# *What to look at:* the two losses do not see the same thing. Hidden states are a little wrong nearly everywhere: the
# merge is another model. But the KL is concentrated in a few tokens: where the words follow from grammar, everybody
# agrees; where a *decision* is made (which name, which number, whether to stop) the merge hesitates. One wrong token
# there spoils a program or a sum, and all the tokens after it follow suit. That is why the logits matter.
#
# Here is the position with the largest KL. On the left T = 1: the distributions as they are. On the right T = 2:
# everything flatter, so that tokens that would hardly be said count too. $T^2$ keeps the size of the gradient. This
# project fits with T = 1, as the authors' command line does; the paper does not say which T it used.

# %%
desk.show(
    fit_figures.next_token(part, peak),
    alt="Bars of the likeliest next tokens of expert and merge at one position, for temperatures 1 and 2.",
)

# %% [markdown]
# ## 5. Eq. 3: stay near, and put it together
#
# A few dozen tokens are not much to learn from. So the coefficients are held near the value ᾱ where they began,
# which is a decent merge already (the paper and this project take the λ with which Task Arithmetic did best on validation
# items):
#
# $$\mathcal{R}(\alpha) = \frac{1}{KL}\sum_{k=1}^{K}\sum_{\ell=1}^{L} \big|\alpha_k^\ell - \bar\alpha_k\big| \tag{3}$$
#
# and what a fit minimises is everything in one line, with a weight $\beta_k$ for each task and $\gamma$ for the
# regulariser:
#
# $$\min_{\alpha}\;\; \sum_{k=1}^{K} \beta_k\left(\mathcal{L}^{(k)}_\text{hid} + \mathcal{L}^{(k)}_\text{logit}\right) + \gamma\,\mathcal{R}(\alpha)$$
#
# At the start R is 0; 0.1 away from it on every coefficient, R is 0.1. Its unit is that of a coefficient, and the
# losses have others, so a γ says nothing by itself: 5 on one backbone may be less than 0.05 on another. (Eq. 1 and Eq. 2
# have different units, too. In this notebook they simply stand side by side, as in the paper; the authors' code and the
# tables' runs have a weight for Eq. 1.)

# %%
alpha, anchor = torch.from_numpy(setup.start.flat()), torch.full((len(setup.start.flat()),), initial)
count, k = len(setup.start.values), len(setup.start.experts)
here, slope = objectives.regulariser(alpha, anchor, experts=k, count=count)
away, slope = objectives.regulariser(alpha + 0.1, anchor, experts=k, count=count)
{"R at the start": round(float(here), 6), "R with every α 0.1 higher": round(float(away), 6)}

# %% [markdown]
# Now the check that all this is the real thing. The next cell runs a real fit, whose log says what each task's two losses
# were before each step. Step 0 looks at the merge that we have looked at, on the samples that we have used. So its log
# must hold our numbers.

# %%
fitted = setup.fit(optimiser={"steps": long_steps})
found = fit_checks.check(setup, fitted, at_start)
display(found)
fit_words.checked(found)

# %% [markdown]
# ## 6. How a single number learns from a whole model
#
# How does one get the gradient of a loss with respect to α? Not by keeping K copies of the model in memory. A merge
# computes one weight $W^\ell$ per tensor, an ordinary backward pass gives $\partial\mathcal{L}/\partial W^\ell$, and
# since $W^\ell$ changes by $\tau_k^\ell$ for each unit of $\alpha_k^\ell$, the chain rule is an inner product:
#
# $$\frac{\partial \mathcal{L}}{\partial \alpha_k^\ell} = \Big\langle \frac{\partial \mathcal{L}}{\partial W^\ell},\; \tau_k^\ell \Big\rangle$$
#
# In words: *if the direction in which the weights want to go is the direction in which expert k went, take more of
# expert k.* As soon as a tensor's gradient has been contracted so, it is thrown away, and the optimiser has K · L
# numbers to care for. One can check a derivative without any calculus: nudge one α up and down and see how the loss
# changes.

# %%
names = list(setup.start.values)
slopes = fit_checks.slopes(setup, names[:: max(1, len(names) // 4)][:4])
desk.show(fit_figures.chain_rule(slopes), alt="Slopes by the chain rule against slopes by nudging, with the diagonal.")

# %% [markdown]
# *What to look at:* the points lie on the diagonal. A slope above 0 means that the loss would fall if this α were
# smaller. And look at their sizes: of the same expert, one tensor's coefficient hardly matters and another's does. That
# is what a single α for each expert cannot express.
#
# ## 7. A fit
#
# The fit above has run already: AdamW on the coefficients, one sample of every task at a step. With all β = 1 it tries
# to please all experts alike. `emkit.expert_merging(experts, prompts={...})` does this with models and prompts of
# your own, and notebook `05-your-own-experts` walks through it.

# %%
desk.show(
    fit_figures.course(fitted.history, zoo.names, epoch=samples),
    alt="Over the steps of a fit: hidden-state loss and KL of each task above, coefficients of each expert below.",
)
fit_words.moved(fitted)

# %% [markdown]
# *What to look at.* Above: each task has its own two losses, and they need not fall together. A merge is a compromise,
# and a task whose KL is small in nats has little say in a sum, however much its answers suffer. (Single steps are
# noisy, since each sees another sample; the bold lines are means over N steps.) Below: all of an expert's coefficients
# start at ᾱ, the dashed line, and fan out. If one α for each expert were enough, they would move as one bundle.
#
# The same coefficients by place: blocks from top to bottom, kinds of tensors from left to right.

# %%
desk.show(fitted.coefficients.plot(), alt="Heat maps of each expert's coefficients by block and kind of tensor.")

# %% [markdown]
# Is the merge any better? Losses on the samples that were fitted on prove nothing. So every measurement from here on is
# taken on what no fit has seen: Eq. 1 and 2 on samples that were held out, and, on validation questions with known
# answers, two things that the fit knows nothing of: how surprising the gold answer is to the model (−ln p for each
# token), and the share of right answers.

# %%
asked = {name: probe.questions(zoo, name, questions) for name in zoo.names}
before_after = fits.measured(setup, {"start": setup.start, "fit": fitted}, asked)
display(before_after.round(3))
fit_words.gained(before_after, "start", "fit")

# %% [markdown]
# The accuracy is of few questions: one of them more or less is nothing. It is a yardstick for looking around, and
# not a table's metric; the tables ask hundreds, in the benchmarks' own harnesses. What a full run of the table's row
# learned, with its own options and more tokens, is drawn here if it has been run:

# %%
fit_words.recorded(zoo)

# %% [markdown]
# ## 8. What each term buys
#
# Is it worth having two losses and a regulariser? The paper takes them away one at a time. Its Table 4 (averages of all
# benchmarks, in percent) says that either loss helps, that on two of three backbones the logits help more, and that
# without regularisation much is lost:

# %%
fit_words.published(4, zoo).head(4)

# %% [markdown]
# Here is the same question, asked of this zoo. Each line is a fit of its own that differs in one thing.

# %%
variants = fits.variants(setup, fits.VARIANTS)
ablation = fits.measured(setup, {"start": setup.start, **{n: v.coefficients for n, v in variants.items()}}, asked)
desk.show(fit_figures.terms(ablation), alt="Dots by task for each variant of the fit: Eq. 1, Eq. 2, loss and accuracy.")
fit_words.ablated(ablation)

# %% [markdown]
# *What to look at:* the first two panels say whether a fit gets what it asks for: "hidden states only" ought to be best in
# Eq. 1 and behind in Eq. 2, "logits only" the other way round. The interesting panels are the others, which nobody asked for. If "both terms" and "logits only"
# lie together there, the hidden term adds little on this zoo; the paper, too, finds that the logits carry more on two of
# its three backbones. If "no regulariser" lies on top of "both terms", γ is too small, or the
# fit too short, to tell: section 11 turns γ up until it bites.
#
# ## 9. β: whose mistakes count more
#
# A sum of losses treats all nats alike. β is the dial for those who do not: it multiplies a task's losses (and so its
# gradients). Below, one task's β goes from 0.1 to 10 while the others' stay at 1. Every point is a fit.

# %%
turned = fits.sweep(setup, "beta", fits.numbers(betas), task)
by_beta, at_rest = fits.swept(setup, turned), setup.losses(setup.start)
front = fit_figures.trade_off(by_beta, task, other, start=at_rest)
desk.show(front, alt="One task's KL against another's, a point for each β.")
fit_words.traded(by_beta, task, other)

# %% [markdown]
# *What to look at:* walk along the line from β = 0.1 on. What one task gains, another loses: this is a **Pareto
# front**, and no point on it is right or wrong. Also look at where the start lies. A point to the left of it and below
# is better for both tasks than Task Arithmetic; a point that is beyond it in one direction has paid for the other task
# with this one.
#
# The paper gives no values for β; its code has 1 for every task. For the Mistral miniature equal weights were tried
# first, and on validation items the fit was then no better than Task Arithmetic, since the programs fell apart. The
# profile therefore has a large β for the code expert, and says so (`eval/profiles/mini/mistral.yaml`). The slider walks
# through the fits that you have just seen; choose a question, and find the β at which its answer changes:

# %%
dials.FitDial(zoo, {f"{value:g}": fit.coefficients for value, fit in turned.items()}, "β", task=task)

# %% [markdown]
# ## 10. N: how many samples are enough?
#
# The paper uses five samples a task, and finds (Table 11, InternVL) that more do not help. Below are fits of equally many
# steps on 1 to 20 samples. Each is measured twice: on the samples that it was fitted on, and on samples that no fit
# has seen.

# %%
by_n = fits.counted(setup, fits.sweep(setup, "samples", fits.numbers(counts)))
desk.show(fit_figures.seen_and_unseen(by_n, at_rest), alt="Losses on fitted and on unseen samples against N.")
fit_words.swept({"all else equal": by_n[by_n["samples"] == "unseen"]}, "N", at_rest)

# %% [markdown]
# *What to look at:* the gap between the two lines is what was learned by heart. With K · L coefficients and a pack of
# questions there is little room for that, which is why so few samples can be enough: the method does not learn the task,
# the experts have learned it; it only has to find out where in the network each of them is needed.
#
# ## 11. γ: why hold back?
#
# According to the paper the regulariser is critical: without it the average falls by 10.5 points on InternVL, by 6.6 on
# Mistral, and by 1.2 on Qwen2-VL (Table 4). Here γ goes from none to so much that next to nothing moves, once with N samples as
# before, and once with a single sample, where there is more to be gained by holding back.

# %%
single = setup.with_samples(1)
by_gamma = {
    f"N = {samples}": fits.swept(setup, fits.sweep(setup, "gamma", fits.numbers(gammas))),
    "N = 1": fits.swept(single, fits.sweep(single, "gamma", fits.numbers(gammas))),
}
desk.show(fit_figures.sweeps(by_gamma, "γ", at_rest), alt="Losses on unseen samples and movement of α against γ.")
fit_words.swept(by_gamma, "γ", at_rest)

# %% [markdown]
# *What to look at:* on the right, how far the coefficients go from where they began, which γ controls as it should: from
# a free fit down to nothing, where the merge is Task Arithmetic again (the dashed lines). The other panels say whether
# that was any good. If the losses on unseen samples are lowest at the left end, holding back bought nothing *in this
# fit*: it is short, and its few steps cannot carry a coefficient far. If the curve of N = 1 has its lowest point
# further to the right than the other's, that is the regulariser at work: the less one has seen, the less one should
# move. A drop like the paper's may need a fit that is long enough to run away; `steps` and `lr` are yours to raise.
#
# ## Exercises
#
# **1. The best single number.** Expert Merging has K · L coefficients. How much of what it gains would one number for
# each expert gain? Take the mean of each expert's fitted coefficients, and measure the merge that they give.
#
# <details><summary>Solution</summary>
#
# ```python
# flat, owner = fitted.coefficients.flat(), fitted.coefficients.flat_experts()
# means = {name: float(flat[owner == k].mean()) for k, name in enumerate(zoo.names)}
# single_numbers = setup.losses(means).mean()
# every_tensor = setup.losses(fitted.coefficients).mean()
# print(f"Eq. 2 on unseen samples: start {at_rest['logit'].mean():.3f}, one number for each expert "
#       f"{single_numbers['logit']:.3f}, one for each tensor {every_tensor['logit']:.3f}")
# ```
#
# Whatever lies between the last two numbers is what is won by telling tensors apart.
# </details>
#
# **2. Temperature.** Eq. 2 has a temperature. Fit with T = 4 and measure with T = 1: does softening help, and is the KL
# that you measure the one that was minimised?
#
# <details><summary>Solution</summary>
#
# ```python
# soft = setup.fit(temperature=4.0)
# plain = setup.fit()
# for name, fit in {"T = 1": plain, "T = 4": soft}.items():
#     print(name, setup.losses(fit.coefficients)["logit"].round(3).to_dict())
# ```
#
# `setup.losses` measures with the T of the setup, 1, whatever a fit had: so the two lines can be compared. The
# value that the second fit itself logged (`soft.history`) is of another size.
# </details>
#
# **3. A task that is left out.** What happens to a task whose β is 0? It has no say, but its expert is still in the
# sum. Does the fit throw that expert out?
#
# <details><summary>Solution</summary>
#
# ```python
# ignored = setup.fit(beta={**dict.fromkeys(zoo.names, 1.0), other: 0.0})
# flat, owner = ignored.coefficients.flat(), ignored.coefficients.flat_experts()
# left = flat[owner == zoo.names.index(other)].mean()
# print(f"mean α of {other}: {initial:g} at the start, {left:.3f} at the end; "
#       f"Eq. 2 of {other}: {at_rest['logit'][other]:.3f} → {setup.losses(ignored.coefficients)['logit'][other]:.3f}")
# ```
#
# The other tasks decide how much of it is left: what of that expert is in their way goes, what does not matter
# to them stays near ᾱ, and what happens to help them may even grow.
# </details>
#
# ## Where this leads
#
# You know Expert Merging now: a merge with one coefficient for each expert and tensor, started where Task Arithmetic is
# best, moved by two comparisons with each expert on its own ground, weighted by β and held back by γ. What is left of
# the paper is the question whether all tensors deserve one coefficient: `03-importance` measures which matter, and
# `04-expert-merging-plus-plus` gives those more. The tables (`make reproduce-table1` and on) compare the method with all
# others, and notebook `06-look-at-the-answers` shows what became of single answers.
