"""What an evolution searches: names and ranges of hyperparameters, and the reservoirs and settings
that values describe.

Parameters keep ER-MRL's names: `sr`, `lr`, `iss` for one reservoir, `sr_1`, `lr_1`, `iss_1`,
`sr_2`, … for several. Further parameters of the reservoirs join under their ReservoirPy names,
`units` or `units_1` and so on, and numeric settings of the learner as `learner.NAME`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from erl.errors import UserError, nearest
from erl.worlds.own_context import OwnContext
from erl.worlds.reservoirs import Context, ReservoirParams

# Ranges of the parameters that --evolve names without one. Shares are in (0, 1], a bias of 1 is as
# strong as an input.
_RANGES = {
    "units": "20:400:log",
    "rc_connectivity": "0.01:1.0:log",
    "input_connectivity": "0.01:1.0:log",
    "bias": "0.01:1.0:log",
    "bias_connectivity": "0.01:1.0:log",
}
NO_BIAS = {"bias": 0.0, "bias_connectivity": 1.0}
# ReservoirPy's up to version 0.3, which ER-MRL's paper and code used: a tenth of the neurons have a
# bias of +1 or -1.
ER_MRL_BIAS = {"bias": 1.0, "bias_connectivity": 0.1}
LEARNER = "learner."
CONTEXT = "context."
# What is searched anyway, within bounds that flags of their own give.
_SEARCHED = {
    "sr": "spectral radius: --min_sr and --max_sr",
    "lr": "leak rate: --min_lr and --max_lr",
    "iss": "input scaling: --fixed_iss False, --min_iss and --max_iss",
}


@dataclass(frozen=True)
class Range:
    """Values that a parameter may take.

    Attributes:
        low, high: bounds, both included; whole numbers if the parameter is one.
        log: whether it is searched on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = True

    @property
    def integer(self) -> bool:
        """Whether the parameter is a whole number."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, unit: float) -> float:
        """The value at a place of this range, from 0 at its lower end to 1 at its upper one, on its
        scale. A whole number has the share of all that is rounded to it.
        """
        half = 0.5 if self.integer else 0.0
        low, high = self.low - half, self.high + half
        if self.log:
            low, high = math.log(low), math.log(high)
        value = low + (high - low) * unit
        value = min(max(math.exp(value) if self.log else value, self.low), self.high)
        return round(value) if self.integer else value


@dataclass(frozen=True)
class SearchConfig:
    """What of an evolution's configuration decides what is searched, and what proposed values
    describe. Names are those of the flags.

    Attributes:
        nb_res: number of reservoirs, whose parameters are numbered; None for a single one, whose
            parameters are not; 0 for an evolution of the learner's settings alone.
        bias, bias_connectivity: of every reservoir, where they are not searched. Their defaults
            are those of studies that were made before there were such flags.
        learner_config: the learner's settings.
        context: a context of the user's own in place of reservoirs, `MODULE:CLASS`.
        context_settings: its settings that are not searched.
    """

    nb_res: int | None = None
    units: int = 100
    skip_c: bool = False
    feed_action: bool = True
    fixed_iss: bool = True
    evolve: str | None = None
    obs_units: int | None = None
    min_sr: float = 1e-4
    max_sr: float = 1e2
    min_lr: float = 1e-2
    max_lr: float = 1.0
    min_iss: float = 1e-1
    max_iss: float = 10.0
    reset_res: bool = True
    published_code: bool = False
    bias: float = 0.0
    bias_connectivity: float = 1.0
    learner_config: dict[str, Any] = field(default_factory=dict)
    # Left out of JSON where there is none, as before there was any.
    context: str | None = field(default=None, metadata={"omit_default": True})
    context_settings: dict[str, Any] | None = field(default=None, metadata={"omit_default": True})


def parse_evolve(text: str | None) -> dict[str, Range]:
    """Read `--evolve`: names, or `name=low:high` or `name=low:high:log`, comma-separated.

    Units, and settings of the learner or of a context whose bounds are both written in digits
    alone, are whole numbers.

    Raises:
        UserError: a name or a range that cannot be.
    """
    found: dict[str, Range] = {}
    for item in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, written = item.partition("=")
        if name in _SEARCHED:
            raise UserError(f"--evolve {name}: other flags set the range of the {_SEARCHED[name]}")
        if not name.startswith((LEARNER, CONTEXT)) and name not in _RANGES:
            raise UserError(
                f"--evolve does not know {name!r}{nearest(name, _RANGES)} (known: "
                f"{', '.join(_RANGES)}, learner.SETTING=low:high, context.SETTING=low:high)"
            )
        if name in found:
            raise UserError(f"--evolve names {name!r} twice")
        if not written and name not in _RANGES:
            raise UserError(f"--evolve {name} needs a range, as in {name}=1e-5:1e-2:log")
        found[name] = _range(name, written if equals else _RANGES[name])
    return found


def _range(name: str, written: str) -> Range:
    match = re.fullmatch(r"([^:]+):([^:]+)(:log|:linear)?", written)
    try:
        if match is None:
            raise ValueError
        low, high = (int(w) if re.fullmatch(r"-?\d+", w) else float(w) for w in match.group(1, 2))
        if not all(map(math.isfinite, (low, high))):
            raise OverflowError
    except ValueError:
        raise UserError(f"--evolve {name}={written}: a range is low:high or low:high:log") from None
    except OverflowError:  # also of a whole number with more digits than a float takes
        raise UserError(f"--evolve {name}={written}: bounds must be finite numbers") from None
    if type(low) is not type(high) or not (name == "units" or name.startswith((LEARNER, CONTEXT))):
        low, high = float(low), float(high)
    log = match.group(3) == ":log"
    if low > high:
        raise UserError(f"--evolve {name}={written}: the lower bound is greater than the upper one")
    if log and low <= 0:
        raise UserError(f"--evolve {name}={written}: a logarithmic range must be above 0")
    share = name in _RANGES and name.endswith("connectivity")
    lowest = {"units": 3, "bias": 0}.get(name, -math.inf)
    if low < lowest:
        raise UserError(f"--evolve {name}={written}: {name} must be at least {lowest}")
    if share and not (low > 0 and high <= 1):
        raise UserError(f"--evolve {name}={written}: {name} must be above 0 and at most 1")
    if name == "units" and not (isinstance(low, int) and isinstance(high, int)):
        raise UserError(f"--evolve {name}={written}: units must be whole numbers")
    return Range(low, high, log)


def is_searched(name: str) -> bool:
    """Whether a parameter of this name describes a reservoir, or a setting of the learner or of a
    context.
    """
    own = re.sub(r"_[0-9]+$", "", name)
    return name.startswith((LEARNER, CONTEXT)) or own in ("sr", "lr", "iss", *_RANGES)


def _suffixes(config: SearchConfig) -> list[str]:
    """Of the parameters of each reservoir: none for a single one, `_1`, `_2`, … for several."""
    if config.nb_res is None:
        return [""]
    return [f"_{i + 1}" for i in range(config.nb_res)]


def search_space(config: SearchConfig) -> dict[str, Range]:
    """The searched parameters of a study.

    Raises:
        UserError: `--evolve` names what there is not, or cannot be read.
    """
    more = parse_evolve(config.evolve)
    for name in more:
        if name.startswith(CONTEXT) and config.context is None:
            raise UserError(
                f"--evolve {name} needs --context MODULE:CLASS, which the evolution in one "
                f"environment takes"
            )
        if not name.startswith((LEARNER, CONTEXT)) and config.context is not None:
            raise UserError(f"--evolve {name} is for reservoirs, and --context stands for them")
        if name.removeprefix(CONTEXT) in (config.context_settings or {}):
            raise UserError(f"{name.removeprefix(CONTEXT)} is searched and set by --context_set")
    if config.context is not None:
        if not more:
            raise UserError(
                "--evolve context.SETTING=low:high is missing: nothing is searched. To train with "
                f"this context unchanged, use: erl train --context {config.context}"
            )
        return more
    ranges = {
        "sr": Range(float(config.min_sr), float(config.max_sr)),
        "lr": Range(float(config.min_lr), float(config.max_lr)),
    }
    if not config.fixed_iss:
        ranges["iss"] = Range(float(config.min_iss), float(config.max_iss))
    ranges |= {name: r for name, r in more.items() if not name.startswith(LEARNER)}
    space = {f"{name}{suffix}": r for suffix in _suffixes(config) for name, r in ranges.items()}
    return space | {name: r for name, r in more.items() if name.startswith(LEARNER)}


def draw_from(ranges: Mapping[str, Range], rng: np.random.Generator) -> dict[str, float]:
    """Parameters drawn uniformly on each one's scale."""
    return {name: r.at(rng.uniform()) for name, r in ranges.items()}


def make_context(config: SearchConfig, params: dict[str, float]) -> Context | None:
    """The reservoirs that hyperparameters describe, or the context of the user's own; None where
    only the learner is evolved.
    """
    if config.context is not None:
        return own_context(config, params)
    if config.nb_res == 0:
        return None
    reservoirs = []
    for suffix in _suffixes(config):
        own: dict[str, Any] = {
            "units": config.units,
            "bias": config.bias,
            "bias_connectivity": config.bias_connectivity,
        }
        own |= {name: params[f"{name}{suffix}"] for name in _RANGES if f"{name}{suffix}" in params}
        reservoirs.append(
            ReservoirParams(
                **own,
                sr=params[f"sr{suffix}"],
                lr=params[f"lr{suffix}"],
                iss=params.get(f"iss{suffix}", 1.0),
            )
        )
    return Context(
        reservoirs=tuple(reservoirs),
        skip_c=config.skip_c,
        reset_res=config.reset_res,
        feed_action=feeds_action(config),
        obs_units=config.obs_units,
    )


def feeds_action(config: SearchConfig) -> bool:
    """Whether the executed action reaches the reservoirs: not in ER-MRL's published code."""
    return config.feed_action and not config.published_code


def own_context(config: SearchConfig, params: dict[str, float]) -> Context:
    """The context of the user's own that a configuration names, with what was proposed."""
    proposed = {k.removeprefix(CONTEXT): v for k, v in params.items() if k.startswith(CONTEXT)}
    return Context(
        reservoirs=(),
        skip_c=config.skip_c,
        reset_res=config.reset_res,
        feed_action=feeds_action(config),
        own=OwnContext(config.context or "", {**(config.context_settings or {}), **proposed}),
    )


def learner_settings(config: SearchConfig, params: dict[str, float]) -> dict[str, Any]:
    """The learner's settings: those of the study, and those that were proposed."""
    proposed = {k.removeprefix(LEARNER): v for k, v in params.items() if k.startswith(LEARNER)}
    return {**config.learner_config, **proposed}
