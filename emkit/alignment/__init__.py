"""What the learned methods need: objectives and their gradients, fits, importance, calibration and its teachers.

=================== ==================================================================================================
``objectives.py``   hidden and logit alignment, the regulariser, their sum (Eq. 1–3), AdaMerging's entropy; the kernels
``heads.py``        the linear map from final hidden states to logits
``importance.py``   layer importance, and the chunk counts of Eq. 4
``fit.py``          the one training loop for coefficients
``learner.py``      a learned method from its settings to coefficients, finished fits kept
``losses.py``       the two methods' objectives of a micro-batch; a step's forward and backward passes
``order.py``        which samples a step takes, with which weights; the authors' order
``like.py``         the options of the authors' default run
``variable.py``     the trained coefficients: parameterisation, Adam, clipping; any part of them at a time
``merged_model.py`` merged weights in place; a hook takes each weight gradient as soon as it exists and frees it
``arithmetic.py``   the two sums over a tensor: θ_base + Σ_k α_k τ_k, and ⟨∂L/∂W, τ_k⟩ for every chunk
``lean.py``         a cheaper way through the same model: what no loss looks at is not computed
``calibration.py``  unlabeled samples of every task, with their teachers' states, kept
``sources.py``      where questions and images come from
``teacher.py``      an expert answers questions, and its states on its answers are recorded
``samples.py``      what is kept of an expert: middle and final hidden states, and its own head
``sequences.py``    rows about one image folded into one sequence
``options.py``      what a run may use: memory, dtype, micro-batches, activation checkpointing
``memory.py``       what a fit needs of the device's and the host's memory, and what there is
``placement.py``    where θ_base and τ_k live: on the device, in host memory, or in the memory-mapped files
``prefetch.py``     what is streamed, fetched before it is asked for
=================== ==================================================================================================

Gradients of merging coefficients are exact, in the memory of one model.
"""
