"""What the judge will cost, said before anything is asked."""

from __future__ import annotations

from dataclasses import dataclass

from eval.judge import spending, upstream
from eval.judge.prices import Price, of_model

# For a benchmark whose protocol does not say. An assumption: VLMEvalKit's five worked examples have 1,800 characters,
# about 450 tokens; 350 are left for a question and a model's answer.
PROMPT_TOKENS, REPLY_TOKENS = 800, 20


@dataclass(frozen=True)
class Line:
    """One judged benchmark: requests still to be asked (at most), and tokens of one of them."""

    benchmark: str
    requests: int
    prompt_tokens: float
    reply_tokens: float
    dollars: float


def lines(plan, jobs=None) -> list[Line]:
    """What the cells that are missing of ``plan`` (:class:`eval.plan.Plan`) will ask a paid judge; [] if it asks none.

    An upper bound in the number of requests: an answer that the harness reads without a judge, and a reply that is
    kept already, cost nothing. The tokens of one request are the protocol's (``judge_tokens``). ``jobs``: those to
    count, all where none are given.
    """
    protocol = plan.protocol
    if not upstream.is_service(protocol.judge_upstream):
        return []
    price = price_of(plan)
    if jobs is None:
        jobs = [*plan.jobs, *(point for row in plan.scale_rows for point in plan.points(row))]
    found = []
    for name in plan.benchmarks:
        asked = protocol.columns[name]
        if not asked.judge:
            continue
        missing = [job for job in jobs if not plan.is_valid(job, name)]
        items = sum(asked.n if job.split == "evaluation" else asked.validation_n for job in missing)
        tokens = asked.judge_tokens
        prompt, reply = (tokens.prompt, tokens.reply) if tokens else (PROMPT_TOKENS, REPLY_TOKENS)
        found.append(Line(name, items, prompt, reply, items * price.of(prompt, reply)))
    return found


def price_of(plan) -> Price:
    """The price of the protocol's pinned snapshot; ``UserError`` when it pins none, or one without a price."""
    return of_model(plan.protocol.judge_model or "a model that the protocol does not name (judge_model)")


def text(plan) -> str:
    """The estimate as it is shown."""
    found = lines(plan)
    if not found:
        return "the judge costs nothing: it grades by rule, or no benchmark asks it\n"
    price, protocol = price_of(plan), plan.protocol
    shown = [f"judge {protocol.judge_model} at {protocol.judge_upstream}"]
    shown += [f"${price.input:g} and ${price.output:g} per million tokens in and out ({price.source}, {price.date})"]
    for line in found:
        each = f"about {line.prompt_tokens:g} + {line.reply_tokens:g} tokens each"
        shown.append(f"{line.benchmark}: at most {line.requests} requests, {each}: ${line.dollars:.2f}")
    cap = cap_of(plan)
    limit = "no cap is set (--max-usd)" if cap is None else f"cap ${cap:g}"
    shown.append(f"together about ${total(plan):.2f}; spent so far ${spent(plan):.2f}; {limit}")
    return "\n".join(shown) + "\n"


def total(plan, jobs=None) -> float:
    """The estimate in dollars, of ``jobs`` where they are given."""
    return sum(line.dollars for line in lines(plan, jobs))


def spent(plan) -> float:
    """Dollars that the judge of ``plan``'s profile has cost so far."""
    return spending.Ledger(plan.judge, 0).accounted()


def cap_of(plan) -> float | None:
    """The cap that a run of ``plan`` would have: the environment's, else the protocol's."""
    return spending.cap(plan.protocol.judge_max_usd)
