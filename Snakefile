# The study's graph: configs/<study>.yaml -> one job per notebook and replicate -> tables -> 05_stats -> PDF.
# run_all.sh starts it in runs/<study>/ with a configuration written by sparsecl.workflow. Only records are
# declared as outputs: Snakemake deletes declared outputs before a job and when it fails.
from sparsecl.workflow import Plan

plan = Plan.read(config)


wildcard_constraints:
    notebook="0[1-4]_[a-z]+",
    replicate="validation|[0-9]+",
    part="[a-z]+",


rule all:
    input:
        plan.targets(),


rule replicate_notebook:
    input:
        lambda wildcards: plan.upstream(wildcards.notebook, wildcards.replicate),
    output:
        "replicate-{replicate}/{notebook}.json",
    params:
        code=lambda wildcards: plan.code(wildcards.notebook),
        settings=lambda wildcards: plan.settings(wildcards.notebook),
        study=plan.study_source,
        root=plan.output,
        recompute=lambda wildcards: plan.recompute(wildcards.notebook),
    priority: lambda wildcards: plan.priority(wildcards.notebook, wildcards.replicate)
    threads: lambda wildcards: plan.threads(wildcards.notebook, wildcards.replicate)
    shell:
        "OMP_NUM_THREADS={threads} python -m sparsecl.notebook_runner {wildcards.notebook:q} {output:q} "
        "study={params.study:q} replicate={wildcards.replicate:q} output={params.root:q} recompute={params.recompute:q}"


rule tables:
    input:
        plan.records(),
    output:
        "tables.json",
    params:
        code=plan.module_code("sparsecl.tables"),
        settings=plan.study.digest(),
        study=plan.study_source,
        root=plan.output,
    shell:
        "python -m sparsecl.workflow tables {params.study:q} {params.root:q}"


rule statistics:
    input:
        lambda wildcards: plan.part_inputs(wildcards.part),
    output:
        "05_stats-{part}.json",
    params:
        code=plan.code("05_stats"),
        study=lambda wildcards: plan.part_study(wildcards.part),
        root=plan.output,
        owner=plan.study.name,
    shell:
        "python -m sparsecl.notebook_runner 05_stats {output:q} "
        "study={params.study:q} part={wildcards.part:q} output={params.root:q} paper_of={params.owner:q}"


rule paper:
    input:
        plan.part_records(),
        plan.paper_sources(),
    output:
        "paper/paper.json",
    params:
        code=plan.module_code("sparsecl.publication"),
        study=plan.study_source,
        root=plan.output,
    shell:
        "python -m sparsecl.workflow paper {params.study:q} {params.root:q}"
