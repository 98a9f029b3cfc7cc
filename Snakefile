# models, prompts -> data -> scale -> row -> table -> notebook. Run through `make reproduce-table1`.
# Snakemake keeps the order, the jobs at once, retries and clusters, and makes what is missing, nothing else: what is
# current is decided by content keys alone (eval/keys.py), by which `reproduce` removes a target before it starts this.
# So every input is `ancient`: no file time counts. By hand, targets that stand are taken as they are:
#   snakemake --cores 2 --config table=table1 profile=mini
# Targets are stamps, score files and copies under results/<profile>/.run/<backbone>, never a committed file: a fresh clone computes.
from shlex import quote

from eval.places import EVALUATION, VALIDATION
from eval.plan import Plan

ASKED = [str(config[key]) if key in config else usual for key, usual in [("table", "table1"), ("profile", "mini"), ("results", "results")]]
PLAN = Plan(*ASKED)
EVAL = f"{quote(config.get('python', 'python'))} -m eval"
ARGUMENTS = "{} --profile {} --results {}".format(*map(quote, ASKED))
STAMPS = f"{PLAN.run}/stamps"
MODELS = [PLAN.zoo_stamp, *([PLAN.prompts_stamp] if PLAN.profile.prompts else [])]  # what any merge needs
GPU = {"gpu": 1} if PLAN.on_gpu else {}  # of a job that merges, fits and asks


def row_inputs(wildcards):
    """The models, the evaluation items, the prompts and, for a row with a free scale, the choice of it."""
    source = PLAN.scale_row(wildcards.row)
    return ancient([PLAN.manifest(EVALUATION), *MODELS] + ([PLAN.scale_file(source)] if source else []))


wildcard_constraints:
    row=r"[^/]+",
    seed=r"\d+",
    split="validation|evaluation",


# the ends of a run take seconds: they stay where Snakemake is
localrules: all, scale, table, notebook

rule all:
    input: PLAN.notebook

rule zoo:
    output: PLAN.zoo_stamp
    shell: "{EVAL} zoo {ARGUMENTS} --stamp {output:q}"

rule data:
    output: str(PLAN.manifest("{split}"))
    shell: "{EVAL} data {ARGUMENTS} --split {wildcards.split:q}"

rule prompts:
    output: PLAN.prompts_stamp
    shell: "{EVAL} prompts {ARGUMENTS}"

# one job for a whole curve: what is imported for a point serves the next ones
rule curve:
    input: ancient(PLAN.manifest(VALIDATION)), ancient(MODELS)
    output: expand(f"{STAMPS}/validation/{{{{row}}}}/{{value}}.done", value=PLAN.grid)
    resources: **GPU
    shell: "{EVAL} curve {ARGUMENTS} {wildcards.row:q}"

rule scale:
    input: lambda wildcards: ancient([PLAN.stamp(point) for point in PLAN.points(wildcards.row)])
    output: f"{PLAN.run}/scale/{{row}}.json"
    shell: "{EVAL} scale {ARGUMENTS} {wildcards.row:q}"

rule row:
    input: row_inputs
    output: f"{STAMPS}/evaluation/{{row}}/{{seed}}.done"
    resources: **GPU
    shell: "{EVAL} row {ARGUMENTS} {wildcards.row:q} {wildcards.seed:q}"

rule table:
    input: ancient([PLAN.stamp(job) for job in PLAN.jobs])
    output: PLAN.csv
    shell: "{EVAL} table {ARGUMENTS}"

rule notebook:
    input: ancient(PLAN.csv)
    output: PLAN.notebook
    shell: "{EVAL} notebook {ARGUMENTS}"
