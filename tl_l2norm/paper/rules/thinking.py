"""Rules of what is asked of thinking itself; these are ours, not the paper's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from tl_l2norm.analysis.correctness import FEW_SAMPLES, GOOD_SAMPLES, MAX_CUT_OFF, MIN_TOLERANCE
from tl_l2norm.analysis.sample_norms import GIVEN_TYPES
from tl_l2norm.core.layers import BUT_LAST, LATE
from tl_l2norm.core.resampling import MIN_PROMPTS
from tl_l2norm.paper.finding import Finding, Known, Missing, figure, span


def correctness(known: Known) -> Finding:
    """Of the norm of right and wrong responses to one problem."""
    table = known["correctness"].set_index(["responses", "layer"])
    own, finished = table.loc[("all", LATE)], table.loc[("finished", LATE)]
    typed = table.loc[("all", GIVEN_TYPES)]
    needed = [own, finished, typed, table.loc[("finished", GIVEN_TYPES)]]
    inner = table.loc[("all", BUT_LAST)] if ("all", BUT_LAST) in table.index else None
    without_cut = "too few problems" if np.isnan(finished["beta"]) else figure(finished, "beta", ".2f")
    finding = Finding(
        measured=f"log-odds of a right response per standard deviation of late norm {own['beta']:.2f}, of what token types "
        f"leave of it {figure(typed, 'beta', '.2f')}; without the last block "
        f"{'-' if inner is None else figure(inner, 'beta', '.2f')}, without the {own['cut_off']:.0%} that were cut off "
        f"{without_cut}; {own['right']:.0%} of the samples are right",
        interval=span(own["low"], own["high"], ".2f"),
        control="pairs of a right and a wrong response that length and log-probability rank right "
        f"{own['auc_without']:.0%}, with the norm {100 * own['gain']:+.1f} points "
        f"{span(100 * own['gain_low'], 100 * own['gain_high'], '.1f')}",
        n=int(own["n"]),
    )
    few = f"; {FEW_SAMPLES}" if round(own["n_samples"] / max(own["n"], 1)) < GOOD_SAMPLES else ""
    for entry in needed:
        if lacking := _why_not(entry):
            return replace(finding, why=lacking + few)
    p = pd.DataFrame(needed)[["p", "p_families"]].astype(float)
    return replace(
        finding,
        p=float(p.max(axis=None)),
        needs={f"log-odds over 0 ({entry.name[1]}, {entry.name[0]} responses)": bool(entry["beta"] > 0) for entry in needed},
        why="needs right responses to have the higher norm among samples of one problem, given length and log-probability, "
        "with and without what their token types add, of these families, whichever of several is left out (p is the greatest)"
        + few,
    )


def _why_not(entry: pd.Series) -> str:
    """What an entry of `correctness_effect` lacks for a verdict; nothing where it lacks nothing."""
    if entry["cut_off"] > MAX_CUT_OFF:
        return (
            f"{entry['cut_off']:.0%} of the responses were cut off or state no answer, which are wrong by construction: "
            f"give them more tokens, until at most {MAX_CUT_OFF:.0%} are"
        )
    if np.isnan(entry["p"]):
        return (
            f"{entry['n']} of {entry['n'] + entry['n_same']} problems have right and wrong responses, at least {MIN_PROMPTS} "
            "are needed: give more problems, or a temperature and levels at which more problems have both (now "
            f"{entry['right']:.0%} of the samples are right)"
        )
    types = entry.name[1] == GIVEN_TYPES  # type: ignore[index]
    if entry["tolerance"] < MIN_TOLERANCE:
        return (
            f"{'token types, ' if types else ''}length and log-probability leave {entry['tolerance']:.1%} of the norm's "
            f"variance within problems, under {MIN_TOLERANCE:.0%}: the norm can't be told from "
            f"{'the token types' if types else 'them'}"
        )
    if np.isnan(entry["p_families"]):
        return (
            f"it would rest on one family: without it fewer than {MIN_PROMPTS} problems have right and wrong responses; give "
            "more problems of the others"
        )
    if np.isinf(entry["low"]) and np.isinf(entry["high"]):
        return f"{entry['n_samples']} responses to {entry['n']} problems reject no effect, however large"
    return ""


def importance(known: Known) -> Finding:
    """Of the tokens on which the answer hangs, where they were swapped behind one of the layers; p is times their number."""
    table = known["importance"]
    rest = table[table["given"] == "the rest"]
    norms = rest[rest["quantity"] == "late_norm"].set_index("layer")
    if norms.empty:
        raise Missing("no late layer was recorded")
    is_met = (norms["rho"] > 0) & (norms["rho"] > norms["shifted"])
    p = norms[["p", "p_shifted"]].max(axis=1, skipna=False)
    layer = p.where(is_met, 2.0).fillna(3.0).idxmin()
    norm, own = norms.loc[layer], rest[rest["layer"] == layer].set_index("quantity")
    rivals = own[own.index.isin(("entropy", "next_entropy"))]
    others = [f"{rho:.3f} behind layer {other}" for other, rho in norms["rho"].drop(layer).items()]
    return Finding(
        measured=f"rho of late norm and importance {norm['rho']:.3f}, given type, place, entropy and dose ({norm['n_tokens']} "
        f"tokens, swapped behind layer {layer})" + "".join(f", {other}" for other in others),
        interval=span(norm["low"], norm["high"], ".3f"),
        control=f"importances of other tokens of the response {norm['shifted']:.3f}"
        + "".join(f", {name.replace('_', ' ')} {figure(entry, 'rho', '.3f')}" for name, entry in rivals.iterrows()),
        n=int(norm["n"]),
        p=float(np.minimum(1.0, len(norms) * p.loc[layer])),
        needs={"rho over 0, and over that after a shift": bool(is_met.loc[layer])},
        why="needs the answer to lose more where a token of higher norm is swapped for another at equal norm, more so than "
        "after a shift of the importances along the response"
        + (f", behind one of {len(norms)} layers (p is times their number)" if others else "")
        + ". Sections of some 10 tokens that are loud and weigh much for a reason of their own pass for it (40 of 40 made-up "
        "worlds), two tokens behind a full stop sometimes (9 of 40)",
    )


def thoughts(known: Known) -> Finding:
    """Of the model's own thoughts beside other text of the same length."""
    table = known["thought_texts"]
    own = table[(table["scope"] == "thought") & (table["layer"] == LATE)].set_index("text")
    if not {"filler", "shuffled"} <= set(own.index):
        raise Missing("it takes filler, the shuffled thought and another problem's thought in place of the own one")
    says = table[table["layer"] == "says answer"]
    shares = own["difference"] / own["own"]
    finding = Finding(
        measured=f"late norm of the own thought {own['own'].iloc[0]:.4g}, less that of "
        + ", ".join(f"{text} {figure(e, 'difference', '.4g')} ({shares[text]:.1%})" for text, e in own.iterrows()),
        interval=", ".join(span(entry["low"], entry["high"], ".4g") for _, entry in own.iterrows()),
        control="still says its answer after " + ", ".join(f"{e['text']} {e['replaced']:.0%}" for _, e in says.iterrows()),
        n=int(own["n"].min()),
    )
    donors = int(own["n"].get("another's", 0))
    if donors < MIN_PROMPTS:
        why = (
            f"only {donors} problems share family and length of thought with another, those with the same thought counted as "
            f"one: at least {MIN_PROMPTS} are needed; give more problems of each family"
        )
        return replace(finding, n=donors, why=why)
    if own["p_families"].isna().any():
        why = f"it would rest on one family: without it fewer than {MIN_PROMPTS} problems are left; give more of the others"
        return replace(finding, why=why)
    return replace(
        finding,
        p=float(own["p"].clip(lower=own["p_families"]).max(skipna=False)),
        needs={f"the own thought louder than {text}": bool(more > 0) for text, more in own["difference"].items()},
        why="needs the own thought louder than filler, than its own tokens in another order and than the thought of another "
        "problem of its family and length, at the same positions, whichever of several families is left out (p is the "
        "greatest); a thought that problems share counts once",
    )
