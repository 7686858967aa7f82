"""The rules of the topic controllers: from held-out PPL to wanted shares, one function each, one signature.

A rule sees only topics that may move and says how their common mass should be divided; guards come before and after it
(`control_guards`), so every formula here is the bare one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_mixers.control_guards import Array
from data_mixers.control_settings import ControllerSettings

ADO_SMALLEST_POINTS = 3  # a law of three parameters
ADO_EXPONENTS = np.arange(5, 81) / 100  # the authors' code bounds the exponent to [0.05, 0.8]
ADO_NEW = 0.1  # the authors' code: 0.9 * old + 0.1 * new, for the policy and for the shares read
SMALLEST_EXPONENT = -50.0  # of exp: keeps a wanted share above 0


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What a rule may look at; every array is [topics], in the order of `topics`."""

    topics: tuple[str, ...]
    shares: Array
    """In force now, of the mass that these topics share: they sum to 1."""
    planned: Array
    """The plan's, likewise."""
    ppl: Array
    """Now, after moving average; where the change is inside its noise, the value of `previous_ppl`."""
    previous_ppl: Array
    """When the topic's change last counted; without a gate, at the last decision."""
    first_ppl: Array
    histories: tuple[tuple[tuple[int, float], ...], ...]
    """Per topic: (training tokens of all topics read so far, loss in nats per token), oldest first."""
    recent_shares: Array
    """Moving average of the shares in force, for ado."""
    average_shares: Array
    """Mean of what ado wanted so far."""
    num_decisions: int


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """wanted: positive, [topics], any scale; None is "stay". average_shares: None is "as before"."""

    wanted: Array | None
    average_shares: Array | None = None
    note: str = ""


Rule = Callable[[ControllerSettings, Signals], Proposal]


def static(settings: ControllerSettings, signals: Signals) -> Proposal:
    """The shares stay as they are."""
    return Proposal(wanted=None)


def stratified(settings: ControllerSettings, signals: Signals) -> Proposal:
    """Equal shares: the baseline that online methods often fail to beat (Aioli, arXiv 2411.05735)."""
    return Proposal(wanted=np.ones(len(signals.topics)))


def syne(settings: ControllerSettings, signals: Signals) -> Proposal:
    """r_i(t) = r_i(t-1) f_i / sum_j r_j(t-1) f_j with f_i = 1 + alpha delta_i w_i.

    Source: arXiv 2407.18743, topic-based mixture: delta is a normalised change of PPL, and a topic whose PPL rose gets
    more (Figure 1). The normaliser is not published; `normalised` has ours.
    A topic's factor never falls when its own change rises, but under sum_abs and max_abs its share can: its change
    also scales down the others' (two equal topics, changes x and -1, alpha 0.3: share 0.588 at x = 0, 0.565 at
    x -> infinity). Under relative and log_ppl the share itself is monotone.
    """
    delta = normalised(settings.normaliser, signals.ppl, signals.previous_ppl)
    return Proposal(wanted=signals.shares * (1 + settings.alpha * delta * _importance(settings, signals)))


def normalised(normaliser: str, ppl: Array, previous: Array) -> Array:
    """delta, [topics], each in [-1, 1]; all 0 where nothing changed. All four are ours.

    sum_abs: change / sum |change|. max_abs: change / max |change|. relative: change / previous. log_ppl: change of
    ln PPL. The last two are cut at 1: a change beyond that (a factor of 2, or of e) is no topic's learning curve.
    """
    change = ppl - previous
    if normaliser == "relative":
        return np.clip(change / previous, -1.0, 1.0)
    if normaliser == "log_ppl":
        return np.clip(np.log(ppl / previous), -1.0, 1.0)
    size = np.abs(change).sum() if normaliser == "sum_abs" else np.abs(change).max()
    return np.zeros_like(change) if size == 0 else change / size


def exponentiated_gradient(settings: ControllerSettings, signals: Signals) -> Proposal:
    """r_i(t) proportional to r_i(t-1) exp(eta w_i (l_i(t) - l_i(t-1))), l = ln PPL.

    Source of the update: Kivinen and Warmuth 1997. Taking the change of loss for the gain is ours: factors multiply up
    to exp(eta w_i (l_i(t) - l_i(0))), a tilt of the plan by what each topic lost or won since the start, so it comes
    to rest when losses do. Taking the loss itself (Group DRO) would drift to the topic of highest entropy for ever.
    """
    gain = settings.step_size * _importance(settings, signals) * np.log(signals.ppl / signals.previous_ppl)
    return Proposal(wanted=signals.shares * _exp(gain))


def ado(settings: ControllerSettings, signals: Signals) -> Proposal:
    """Share by learning speed: what one more token would take off each topic's loss, by a law fitted to its past.

    Source: arXiv 2410.11820 and its code (yidingjiang/ado, src/data_selectors/ado.py):
        L_k(n) = eps_k + beta_k n^-a_k, n tokens read of all topics; speed_k = a_k (L_k(n) - eps_k) / n;
        rho_k proportional to mu_k lambda_k speed_k, mu the prior (here the plan), lambda_k = sqrt(h_k (1 - h_k)) with
        h a moving average of the shares read; shares = 0.9 * mean of the past rho + 0.1 * rho.
    Ours: the law is fitted to held-out loss by least squares (`fit_power_law`), not by Huber loss to smoothed training
    loss; averages step once a decision, not once a training step; the floor takes the place of the smallest rho, 0.01.
    Until a topic has three validations after training began, nothing moves.
    """
    points = min(len(history) for history in signals.histories)
    if points < ADO_SMALLEST_POINTS:
        return Proposal(wanted=None, note=f"ado fits {ADO_SMALLEST_POINTS} validations or more and has {points}: stays")
    speed = np.array([learning_speed(history) for history in signals.histories])
    credit = np.sqrt(signals.recent_shares * (1 - signals.recent_shares))
    preference = signals.planned * credit * speed
    if preference.sum() == 0:
        return Proposal(wanted=None, note="ado sees no topic learning: stays")
    preference = preference / preference.sum()
    new = 1 / (signals.num_decisions + 1)
    return Proposal(
        wanted=(1 - ADO_NEW) * signals.average_shares + ADO_NEW * preference,
        average_shares=(1 - new) * signals.average_shares + new * preference,
    )


def learning_speed(history: tuple[tuple[int, float], ...]) -> float:
    """-dL/dn of the fitted law at the last point: nats per token, at least 0."""
    tokens = np.array([point[0] for point in history], dtype=np.float64)
    loss = np.array([point[1] for point in history])
    _, reducible, exponent = fit_power_law(tokens / tokens[-1], loss)
    return float(exponent * reducible / tokens[-1])


def fit_power_law(tokens: Array, loss: Array) -> tuple[float, float, float]:
    """(eps, beta, a) of loss = eps + beta * tokens ** -a with eps, beta >= 0, by least squares over a grid of a.

    For each a the problem is linear in eps and beta; at a negative optimum the bound binds, and the other follows.
    """
    best = (np.inf, float(loss.mean()), 0.0, float(ADO_EXPONENTS[0]))
    for exponent in ADO_EXPONENTS:
        power = tokens**-exponent
        spread = power - power.mean()
        square = float(spread @ spread)
        beta = float(spread @ loss) / square if square > 0 else 0.0
        eps = float(loss.mean() - beta * power.mean())
        if beta < 0:
            beta, eps = 0.0, float(loss.mean())
        elif eps < 0:
            beta, eps = float(power @ loss) / float(power @ power), 0.0
        error = float(np.square(loss - eps - beta * power).sum())
        best = min(best, (error, eps, beta, float(exponent)))
    return best[1], best[2], best[3]


def velocitune(settings: ControllerSettings, signals: Signals) -> Proposal:
    """r_i(t) proportional to r_i(t-1) exp(V_i), V_i = (l_i(t) - target_i) / (l_i(0) - target_i) cut to [0, 1].

    V is what is left of the way to the target: a topic that learns slowly gets more. Source: arXiv 2411.14318.
    Ours: without a target, the first loss less `target_drop`; a target at or above the first loss is reached, V = 0.
    """
    first, loss = np.log(signals.first_ppl), np.log(signals.ppl)
    target = np.array(
        [
            settings.targets.get(topic, float(start) - settings.target_drop)
            for topic, start in zip(signals.topics, first, strict=True)
        ]
    )
    way = first - target
    left = np.where(way > 0, (loss - target) / np.where(way > 0, way, 1.0), 0.0)
    return Proposal(wanted=signals.shares * _exp(np.clip(left, 0.0, 1.0)))


CONTROLLERS: dict[str, Rule] = {
    "static": static,
    "stratified": stratified,
    "syne_paper": syne,  # ControllerSettings.in_force takes its guards off
    "syne": syne,
    "exponentiated_gradient": exponentiated_gradient,
    "ado": ado,
    "velocitune": velocitune,
}


def _importance(settings: ControllerSettings, signals: Signals) -> Array:
    return np.array([float(settings.importance.get(topic, 1.0)) for topic in signals.topics])


def _exp(exponents: Array) -> Array:
    """exp up to a common factor, never 0 and never infinite."""
    return np.asarray(np.exp(np.maximum(exponents - exponents.max(), SMALLEST_EXPONENT)), dtype=np.float64)
