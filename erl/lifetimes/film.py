"""Film a trained agent: `python -m erl.film --model models/STUDY/seed_0`.

An episode without exploration as MP4, GIF or WebP; beside it, if asked for, the activity of the
reservoir and the return so far. No screen is needed: MuJoCo draws with EGL or OSMesa, whichever
the machine has.
"""

import importlib.util
import io
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
from gymnasium.envs.registration import load_env_creator
from PIL import Image, ImageDraw

from erl.cli import Sink
from erl.errors import UserError, one_line
from erl.files import check_new_file, write_whole, writing
from erl.lifetimes.film_flags import FORMATS, FilmConfig
from erl.lifetimes.models import find_model, load_model
from erl.lifetimes.trace import Trace, trace
from erl.statistics import number_text
from erl.worlds.evaluation import Policy
from erl.worlds.specification import LifetimeSpec
from erl.worlds.tasks import find

# Animations are rarely shown faster; what is simulated faster is thinned.
MAX_FPS = 30
# How MuJoCo draws without a screen, the faster one first.
RENDERERS = ("egl", "osmesa")
# Steps of the past that the panel beside the frames shows.
HISTORY = 150
# Height and width in pixels that a frame has at least beside a panel.
PANEL = (64, 64)


def film(config: FilmConfig, sink: Sink) -> int:
    """Run the policy without exploration for an episode, or its beginning, and write what it looks
    like.

    Raises:
        UserError: no such model, a format that cannot be written, an environment that cannot be
            seen.
    """
    model = find_model(str(config.model))
    spec, agent = load_model(model)
    path = Path(config.file or f"{model}.mp4")
    check_file(path, config.overwrite)
    episode = film_agent(
        spec, agent, path, config.episode_seed, config.steps, config.panel, config.width, sink
    )
    total = number_text(float(episode.rewards.sum()))
    said = (
        f"return {total}"
        if episode.ended
        else f"the episode has not ended; sum of rewards so far {total}"
    )
    sink.line(f"{path}: {len(episode):,} steps, {said}")
    return 0


def film_agent(
    spec: LifetimeSpec,
    agent: Policy,
    path: Path,
    seed: int = 0,
    steps: int | None = None,
    panel: bool = False,
    width: int | None = None,
    sink: Sink | None = None,
) -> Trace:
    """Film an episode of an agent.

    Args:
        spec: of its lifetime.
        agent: from `load_model`, or just trained.
        path: of the film: .mp4, .gif or .webp. A film that is there is replaced.
        seed: of the episode.
        steps: at most so many; None for the whole episode.
        panel: whether the reservoir's activity and the return so far are shown beside the frames.
        width: of the frames, in pixels; None as they are drawn.
        sink: is told how far it is.

    Returns:
        The episode.

    Raises:
        UserError: the environment cannot be seen, or the file cannot be written.
    """
    check_file(path, overwrite=True)
    choose_renderer(spec.task.env_id)
    fps, every = float(MAX_FPS), 1
    limit = "" if steps is None else f" of at most {steps:,}"

    def watch(done: int) -> None:
        if sink is not None and done % 50 == 0:
            sink.status(f"filming {path.name}: step {done:,}{limit}")

    def draw(env: gym.Env, step: int) -> bytes | None:
        nonlocal fps, every
        fps = float(env.metadata.get("render_fps") or MAX_FPS)
        every = max(1, math.ceil(fps / MAX_FPS))
        return _packed(_image(env), width) if step % every == 0 else None

    try:
        episode = trace(spec, agent, seed, steps, draw, watch)
    except Exception as e:
        raise UserError(f"{spec.task.env_id} cannot be filmed: {_said(e)}") from e
    finally:
        if sink is not None:
            sink.close()
    shown = (_frame(episode, i, panel) for i, frame in enumerate(episode.frames) if frame)
    _write(path, shown, fps / every)
    return replace(episode, frames=())


def check_file(path: Path, overwrite: bool) -> None:
    """Raise a UserError if a film cannot be written there; leaves nothing behind."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError(f"{path.suffix} needs another package: pip install imageio-ffmpeg")
    check_new_file(path, overwrite)


# -- drawing without a screen --


def choose_renderer(env_id: str) -> str | None:
    """Have environments draw without a screen, where there is none.

    `MUJOCO_GL` decides if it is set. Otherwise EGL and OSMesa are tried in a process of their own,
    once, since a driver that fails may take its process with it.

    Returns:
        What MuJoCo draws with; None where there is a screen or the environment is none of MuJoCo's.

    Raises:
        UserError: a MuJoCo environment, no screen, and neither EGL nor OSMesa.
    """
    if sys.platform != "linux" or os.environ.get("DISPLAY"):
        return None
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if not _is_mujoco(env_id):
        return None
    if not os.environ.get("MUJOCO_GL"):
        found = available_renderer()
        if found is None:
            raise UserError(
                f"{env_id} cannot be drawn here: there is no screen, and neither EGL nor OSMesa "
                "works; install one (Debian: libegl1 libegl-mesa0, or libosmesa6), or set MUJOCO_GL"
            )
        os.environ["MUJOCO_GL"] = found
    return os.environ["MUJOCO_GL"]


def _is_mujoco(env_id: str) -> bool:
    """Whether an environment is one of MuJoCo's, or made of Gymnasium's classes of them."""
    try:
        entry = find(env_id).entry_point
    except UserError:
        return False
    if "mujoco" in str(entry).casefold():
        return True
    with suppress(Exception):  # what cannot be made fails where it is made, and says why there
        made = load_env_creator(entry) if isinstance(entry, str) else entry
        classes: tuple[type, ...] = made.__mro__ if isinstance(made, type) else ()
        return any(each.__module__.startswith("gymnasium.envs.mujoco") for each in classes)
    return False


@cache
def available_renderer() -> str | None:
    """The first of `RENDERERS` that can make a context here; None if none can."""
    code = "import mujoco.{0} as g; c = g.GLContext(16, 16); c.make_current(); c.free()"
    for name in RENDERERS:
        done = subprocess.run(
            [sys.executable, "-c", code.format(name)],
            env={**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name},
            capture_output=True,
        )
        if done.returncode == 0:
            return name
    return None


def _image(env: gym.Env) -> np.ndarray:
    try:
        image: Any = env.render()
    except Exception as e:
        raise UserError(f"the environment cannot be drawn here: {_said(e)}") from e
    if not isinstance(image, np.ndarray):
        raise UserError("the environment cannot draw images")
    return image


def _packed(image: np.ndarray, width: int | None) -> bytes:
    """An image as a PNG: a thousand of them, as they are drawn, would fill the memory."""
    picture = Image.fromarray(image).convert("RGB")
    if width is not None:
        picture = picture.resize((width, round(picture.height * width / picture.width)))
    packed = io.BytesIO()
    picture.save(packed, format="PNG", compress_level=1)
    return packed.getvalue()


def _said(error: Exception) -> str:
    return one_line(error) or type(error).__name__


# -- the panel beside the frames --


def _frame(episode: Trace, i: int, panel: bool) -> Image.Image:
    """The i-th image of a film, with even sides, as MP4 has them."""
    frame = np.asarray(Image.open(io.BytesIO(episode.frames[i])))
    if panel:
        # Frames of a few pixels are enlarged, so that the panel has room for its words.
        times = max(1, *(-(-least // side) for least, side in zip(PANEL, frame.shape)))
        frame = frame.repeat(times, axis=0).repeat(times, axis=1)
        frame = np.concatenate([frame, panel_image(episode, i, *frame.shape[:2])], axis=1)
    even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
    return Image.fromarray(even)


def panel_image(episode: Trace, i: int, height: int, width: int) -> np.ndarray:
    """What is shown beside the i-th frame: (height, width, 3).

    Above, the state of every neuron over the last `HISTORY` steps, violet below zero and orange
    above, white at zero; below, the return so far over the whole episode. Without a reservoir the
    return has all the space.
    """
    neurons = episode.states.shape[1]
    upper = round(height * 0.6) if neurons else 0
    panel = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(panel)
    if neurons:
        first = max(0, i + 1 - HISTORY)
        past = np.zeros((HISTORY, neurons))
        past[HISTORY - (i + 1 - first) :] = episode.states[first : i + 1]
        size = (width - 8, upper - 24)
        activity = Image.fromarray(diverging(past.T)).resize(size, Image.Resampling.NEAREST)
        panel.paste(activity, (4, 20))
        context = episode.spec.context
        name, of = "reservoir", "neurons"
        if context is not None and context.own is not None:
            name, of = context.own.name, "numbers"
        texts = (f"{name}: {neurons} {of}, last {HISTORY} steps", f"{neurons} {of}", "")
        # The longest that fits.
        text = next(t for t in texts if not t or pen.textlength(t) <= width - 8)
        pen.text((4, 4), text, fill="black")
    returns = np.concatenate([[0.0], np.cumsum(episode.rewards)])
    pen.text((4, upper + 4), f"return so far {number_text(returns[i])}   step {i:,}", fill="black")
    low, high = float(returns.min()), float(returns.max())
    top, bottom = upper + 22, height - 6
    x = 4 + np.arange(len(returns)) / max(1, len(returns) - 1) * (width - 8)
    y = bottom - (returns - low) / ((high - low) or 1.0) * (bottom - top)
    pen.line([(4, bottom), (width - 4, bottom)], fill=(200, 200, 200))
    if i:
        pen.line(list(zip(x[: i + 1], y[: i + 1])), fill=(213, 94, 0), width=2)
    pen.ellipse([x[i] - 3, y[i] - 3, x[i] + 3, y[i] + 3], fill=(0, 114, 178))
    return np.asarray(panel)


def diverging(values: np.ndarray) -> np.ndarray:
    """Values in [-1, 1] as colours, violet over white to orange: uint8 (…, 3)."""
    ends = np.array([[84, 39, 136], [255, 255, 255], [179, 88, 6]], dtype=float)
    at = np.clip(values, -1, 1)[..., None] + 1.0
    low = np.minimum(at, 1.0)
    colours = ends[0] + (ends[1] - ends[0]) * low + (ends[2] - ends[1]) * (at - low)
    return colours.round().astype(np.uint8)


# -- files --


def _timed(frames: Iterable[Image.Image], fps: float) -> Iterator[Image.Image]:
    """Frames with the time that each is shown. A GIF has whole hundredths of a second: they are
    rounded so that the film keeps its pace.
    """
    ends = (round(100 * (k + 1) / fps) for k in count())
    for frame, (begin, end) in zip(frames, pairwise(chain([0], ends))):
        frame.info["duration"] = 10 * (end - begin)
        yield frame


def _write(path: Path, frames: Iterable[Image.Image], fps: float) -> None:
    """Write a film from frames that are made one by one."""
    ending = path.suffix.lower()
    forms = {".gif": "GIF", ".webp": "WEBP"}

    def write(part: str) -> None:
        if ending == ".mp4":
            # Any even size of frame, in the colours that all players know.
            writer: Any = imageio.get_writer(
                part, format="FFMPEG", fps=fps, macro_block_size=2, quality=8
            )
            with writer:
                for frame in frames:
                    writer.append_data(np.asarray(frame))
            return
        images = _timed(frames, fps) if ending == ".gif" else iter(frames)
        times: dict[str, Any] = {} if ending == ".gif" else {"duration": 1000 / fps}
        next(images).save(
            part, format=forms[ending], save_all=True, append_images=images, loop=0, **times
        )

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
