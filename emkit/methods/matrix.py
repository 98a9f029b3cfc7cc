"""Methods that make one matrix of the K matrices τ_k of a tensor: TSV Merging, Iso-C, WUDI Merging and WUDI v2."""

from __future__ import annotations

from emkit.combine.iso_c import NULL_SPACES, iso_c_matrix
from emkit.combine.tsv import FORMS as TSV_FORMS
from emkit.combine.tsv import tsv_matrix
from emkit.combine.wudi import SOLVERS, wudi_matrix
from emkit.combine.wudi_v2 import FORMS as WUDI_V2_FORMS
from emkit.combine.wudi_v2 import wudi_v2_matrix
from emkit.methods.assembly import averaged, matrices, replaced
from emkit.methods.registry import AUTHORS_ONE, VALIDATION, Context, Merge, Option, method
from emkit.schema import choice, either, integer, number

_ITERATIONS = Option(integer(0), 300, "steps; 300 in the code of both WUDI versions' authors and the paper's")


def _scale(about: str) -> Option:
    return Option(number(), 1.0, about)


@method(
    scale=AUTHORS_ONE,
    options={
        "form": Option(
            choice(*TSV_FORMS),
            "published",
            "published: the method of its authors, on every matrix, and the default because a row should be what its "
            "label says. as_run: what ran for the paper's tables. In its code, and in that of the experts' authors, "
            "the SVD branch is entered for lm_head.weight alone, which is always excluded, so that every tensor is "
            "θ_base + mean τ; Table 2's TSV row is nearly its Weight Average row",
        ),
        "scale": _scale("λ; 1 by its authors (their α)"),
    },
    parts=(tsv_matrix,),
)
def tsv(ctx: Context) -> Merge:
    """TSV Merging: θ_base + λ U⊥ diag(s) V⊥ᵀ of every matrix (Gargiulo et al., 2025).

    Other tensors than matrices, and with ``form`` as_run all tensors: θ_base + λ · mean τ_k.
    """
    scale = ctx.options["scale"]
    if ctx.options["form"] == "as_run":
        return Merge(replaced(ctx, lambda name: averaged(ctx.task_vectors, name, scale)), ctx.base, scale=scale)
    return matrices(ctx, tsv_matrix, scale)


@method(
    "scale",
    scale=VALIDATION,
    options={
        "null_space": Option(
            choice(*NULL_SPACES),
            "fill",
            "what directions with singular value 0 get: fill, the mean singular value (as published and as run); "
            "leave, nothing, which low-rank adapters need for a result that does not depend on the SVD's noise",
        )
    },
    parts=(iso_c_matrix,),
)
def iso_c(ctx: Context) -> Merge:
    """Iso-C: θ_base + λ σ̄ U Vᵀ of every matrix (Marczak et al., 2025), λ free (their α, tuned in (0, 3]).

    Other tensors than matrices: θ_base + λ · mean τ_k.
    """
    return matrices(ctx, lambda taus: iso_c_matrix(taus, ctx.options["null_space"]), ctx.needed_scale())


@method(
    scale=AUTHORS_ONE,
    options={
        "solver": Option(
            choice(*SOLVERS),
            "adam",
            "adam: the authors' early-stopped optimisation; closed_form: the minimum of their objective, which does "
            "not depend on lr and iterations. adam is the default because it is what the published scores are of",
        ),
        "lr": Option(
            number(0),
            1e-5,
            "Adam's rate: the authors' 1e-5. It is in the weights' own units, so models with larger task vectors need "
            "a larger one to get as far",
        ),
        "iterations": _ITERATIONS,
        "scale": _scale("λ; 1 by its authors"),
    },
    parts=(wudi_matrix,),
)
def wudi(ctx: Context) -> Merge:
    """WUDI Merging: θ_base + λ M of every matrix, M minimising the interference with each τ_i (Cheng et al., 2025).

    Other tensors than matrices: θ_base + λ · mean τ_k.
    """
    solver, lr, iterations = (ctx.options[key] for key in ("solver", "lr", "iterations"))
    return matrices(ctx, lambda taus: wudi_matrix(taus, solver, lr, iterations), ctx.options["scale"])


_RATES = {"internvl": 1e-5, "qwen2_vl": 1e-4}


@method(
    scale=AUTHORS_ONE,
    options={
        "form": Option(
            choice(*WUDI_V2_FORMS),
            "internvl",
            "which of its authors' two programs: internvl (centred, from Σ τ, Adam) or qwen2_vl (not centred, from "
            "mean τ, SGD), which they ran on experts trained as adapters. internvl is the default: their experts whose "
            "weights were all trained are the more general case",
        ),
        "lr": Option(
            either(number(0), choice("authors")),
            "authors",
            "the rate: a number, or that of the authors' code for the form, 1e-5 for internvl (the paper's code "
            "has 1e-6) and 1e-4 for qwen2_vl",
        ),
        "iterations": _ITERATIONS,
        "scale": _scale("λ; 1 by its authors"),
    },
    parts=(wudi_v2_matrix,),
)
def wudi_v2(ctx: Context) -> Merge:
    """WUDI v2: θ_base + λ M of every matrix, M minimising the interference on leading directions (Wei et al., 2025).

    Other tensors than matrices: θ_base + λ · mean τ_k.
    """
    form, lr = ctx.options["form"], ctx.options["lr"]
    rate = _RATES[form] if lr == "authors" else lr
    return matrices(ctx, lambda taus: wudi_v2_matrix(taus, form, rate, ctx.options["iterations"]), ctx.options["scale"])
