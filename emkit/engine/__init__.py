"""The alignment engine: gradients of merging coefficients, exactly, in the memory of one model.

=================== ==================================================================================================
``options.py``      what a run may use: memory, dtype, micro-batches, activation checkpointing
``memory.py``       what a fit needs of the device's and the host's memory, and what there is
``placement.py``    where θ_base and τ_k live: on the device, in host memory, or in the memory-mapped files
``prefetch.py``     what is streamed, fetched before it is asked for
``arithmetic.py``   the two sums over a tensor: θ_base + Σ_k α_k τ_k, and ⟨∂L/∂W, τ_k⟩ for every chunk
``merged_model.py`` merged weights in place; a hook takes each weight gradient as soon as it exists and frees it
``variable.py``     the trained coefficients: parameterisation, regulariser, Adam, clipping; any part of them at a time
``teacher.py``      what is kept of an expert: middle and final hidden states, and its own head
``logits.py``       KL and entropy over the vocabulary, block by block, with their gradients
``losses.py``       forward and backward of a micro-batch
``order.py``        which samples a step takes, with which weights; the authors' order
=================== ==================================================================================================
"""
