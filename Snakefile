# zoo -> data -> scale -> row -> table -> notebook. Run through `make reproduce-table1`, or by hand:
#   snakemake --cores 2 --config recipe=emkit/recipes/mini/internvl.yaml
# Targets are stamps, score files and copies under results/<profile>/.run/<backbone>, never a committed file: a fresh clone computes.
from shlex import quote

from eval import notebooks
from eval.plan import EVALUATION, VALIDATION, Job, Plan

PLAN = Plan(config["recipe"], config.get("results", "results"))
EVAL = f"{quote(config.get('python', 'python'))} -m eval"
ARGUMENTS = f"{quote(str(PLAN.path))} --results {quote(str(PLAN.home.parent))}"
STAMPS = f"{PLAN.run}/stamps"


def row_inputs(wildcards):
    """The models, the evaluation items and, for a row with a free scale, the choice of it."""
    source = PLAN.scale_row(wildcards.row)
    return [PLAN.manifest(EVALUATION), PLAN.zoo_stamp] + ([PLAN.scale_file(source)] if source else [])


wildcard_constraints:
    row=r"\w+",
    seed=r"\d+",
    split="validation|evaluation",


rule all:
    input: PLAN.notebook

rule zoo:
    output: PLAN.zoo_stamp
    shell: "{EVAL} zoo {ARGUMENTS} --stamp {output}"

rule data:
    output: f"{PLAN.run}/data/{{split}}/manifest.json"
    shell: "{EVAL} data {ARGUMENTS} --split {wildcards.split}"

# one job for a whole curve: what is imported for a point serves the next ones
rule curve:
    input: PLAN.manifest(VALIDATION), PLAN.zoo_stamp
    output: expand(f"{STAMPS}/validation/{{{{row}}}}/{{value}}.done", value=PLAN.grid)
    shell: "{EVAL} curve {ARGUMENTS} {wildcards.row}"

rule scale:
    input: lambda wildcards: [PLAN.stamp(point) for point in PLAN.points(wildcards.row)]
    output: f"{PLAN.run}/scale/{{row}}.json"
    shell: "{EVAL} scale {ARGUMENTS} {wildcards.row}"

rule row:
    input: row_inputs
    output: f"{STAMPS}/evaluation/{{row}}/{{seed}}.done"
    shell: "{EVAL} row {ARGUMENTS} {wildcards.row} {wildcards.seed}"

rule table:
    input: [PLAN.stamp(job) for job in PLAN.jobs]
    output: PLAN.table
    shell: "{EVAL} table {ARGUMENTS}"

rule notebook:
    input: PLAN.table, str(notebooks.source(PLAN))
    output: PLAN.notebook
    shell: "{EVAL} notebook {ARGUMENTS}"
