"""Schedules: all weights go at once, in rounds before training, or gradually during it."""

from __future__ import annotations

from dataclasses import dataclass

SCHEDULES = ("one-shot", "cubic", "exponential")
"""At once; gradually during training; in rounds of scoring and pruning before it."""


def exponential_targets(rounds: int, final: float) -> list[float]:
    """The sparsity after each round, 1 - (1 - final)^(r / rounds): SynFlow's schedule (Tanaka et al., 2020)."""
    return [*(1 - (1 - final) ** (number / rounds) for number in range(1, rounds)), final]


def cubic_sparsity(step: float, *, begin: float, end: float, final: float, initial: float = 0.0) -> float:
    """Sparsity of gradual magnitude pruning at `step`: s_f + (s_i - s_f) (1 - (t - t_0) / (t_n - t_0))^3.

    `initial` at `begin`, `final` from `end` on. Source: Zhu & Gupta (2017).
    """
    if step >= end:
        return final
    remaining = 1 - max(step - begin, 0) / (end - begin)
    return final + (initial - final) * remaining**3


@dataclass(frozen=True)
class CubicFall:
    """A density that falls by the cubic between the shares `begin` and `end` of a training."""

    begin: float = 0.1
    end: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(f"want 0 <= begin < end <= 1, got {self.begin:g} and {self.end:g}")

    def sparsity_at(self, step: int, steps: int, final: float) -> float:
        """The sparsity after `step` of `steps`, 0 at first and `final` at last."""
        return cubic_sparsity(step, begin=self.begin * steps, end=self.end * steps, final=final)


def pruning_steps(total_steps: int, *, begin: float, end: float, events: int) -> list[int]:
    """The optimizer steps at which gradual pruning prunes: `events` of them from begin to end (shares)."""
    first, last = round(begin * total_steps), round(end * total_steps)
    if events == 1 or last <= first:
        return [max(last, 1)]
    spread = (last - first) / (events - 1)
    return sorted({max(round(first + spread * position), 1) for position in range(events)})


def pruning_targets(times: list[int], *, span: float, final: float, initial: float) -> dict[int, float]:
    """The sparsity of every pruning event, by its step: cubic from `initial` at the first one.

    `span` is the length of the cubic in steps, 0 for the time between the first and the last event. The last event
    reaches `final` even where the cubic goes on: Iofinova et al. divide by 71 epochs for events at 10, 20, ... 80.
    """
    end = times[0] + span if span else times[-1]
    targets = {
        step: cubic_sparsity(step, begin=times[0], end=end, final=final, initial=initial) for step in times
    }
    return {**targets, times[-1]: final}


def update_interval(steps: float, *, every: int, fewest: int) -> int:
    """Steps between two updates of a mask: `every`, or fewer, so that `steps` have at least `fewest` updates."""
    return max(min(every, int(steps / fewest)), 1)
