"""Film a trained agent: `python -m erl.film --model models/STUDY/seed_0`."""

import importlib.util
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np

from erl.cli import main, option
from erl.errors import UserError
from erl.files import check_writable, write_whole
from erl.lifetimes.lifetime import load_model
from erl.worlds.evaluation import Policy

# Animations are rarely shown faster; what is simulated faster is thinned.
MAX_FPS = 30
FORMATS = (".gif", ".webp", ".mp4")


@dataclass(frozen=True)
class FilmConfig:
    """Flags of `python -m erl.film`."""

    model: str | None = option(None, "saved model, with or without .zip")
    file: str | None = option(
        None,
        "film to write, .gif, .webp, or .mp4 (pip install imageio-ffmpeg); by default the "
        "model's name, .gif",
    )
    steps: int = option(300, "environment steps at most; a film ends with its episode")
    episode_seed: int = option(0, "seed of the episode")
    overwrite: bool = option(False, "replace the file if it exists")

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("--model is missing: which saved model to film")
        if self.steps < 1:
            raise UserError(f"--steps is at least 1, not {self.steps}")
        if self.episode_seed < 0:
            raise UserError(f"--episode_seed is not negative: {self.episode_seed}")


def film(config: FilmConfig, sink: Any) -> int:
    """Run the policy without exploration for an episode, or its beginning, and write what it looks
    like.

    Raises:
        UserError: no such model, a format that cannot be written, an environment that cannot be
            seen.
    """
    model = str(config.model).removesuffix(".zip").removesuffix(".json")
    spec, agent = load_model(model)
    path = Path(config.file or f"{model}.gif")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} ends in none of {', '.join(FORMATS)}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError(f"{path.suffix} needs another package: pip install imageio-ffmpeg")
    if path.is_dir() or (path.exists() and not config.overwrite):
        raise UserError(
            f"{path} exists" + (" and is no file" if path.is_dir() else "; --overwrite replaces it")
        )
    try:
        check_writable(str(path.parent))
    except OSError as e:
        raise UserError(f"{path} cannot be written: {e.strerror or e}") from e
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):  # no window is needed
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        env = spec.make_env(render_mode="rgb_array")
    except Exception as e:
        raise UserError(f"{spec.task.env_id} cannot be filmed: {' '.join(str(e).split())}") from e
    try:
        frames, total, over = record(agent, env, config.steps, config.episode_seed)
        fps = int(env.metadata.get("render_fps") or MAX_FPS)
    finally:
        with suppress(Exception):  # renderers without a display fail to close on some machines
            env.close()
    every = max(1, -(-fps // MAX_FPS))
    _write(path, frames[::every], fps / every)
    said = f"return {total:,.1f}" if over else f"the episode goes on; reward so far {total:,.1f}"
    sink.line(f"{path}: {len(frames) - 1} steps, {said}")
    return 0


def record(agent: Policy, env: Any, steps: int, seed: int) -> tuple[list[np.ndarray], float, bool]:
    """Images (height, width, 3) of an episode's beginning, its rewards' sum, and whether it
    ended.
    """
    observation, _ = env.reset(seed=seed)
    frames, state, total, over = [_image(env)], None, 0.0, False
    start = np.ones(1, dtype=bool)
    while not over and len(frames) <= steps:
        action, state = agent.predict(
            observation, state=state, episode_start=start, deterministic=True
        )
        observation, reward, terminated, truncated, _ = env.step(action)
        total, over, start = total + float(reward), terminated or truncated, np.zeros(1, dtype=bool)
        frames.append(_image(env))
    return frames, total, over


def _image(env: Any) -> np.ndarray:
    try:
        image = env.render()
    except Exception as e:
        raise UserError(
            f"the environment cannot be drawn here: {' '.join(str(e).split()) or type(e).__name__}"
        ) from e
    if not isinstance(image, np.ndarray):
        raise UserError("the environment draws no images")
    return image


def _write(path: Path, frames: list[np.ndarray], fps: float) -> None:
    images = np.stack(frames)

    def write(part: str) -> None:
        if path.suffix.lower() == ".mp4":
            imageio.imwrite(part, images, extension=".mp4", fps=fps, plugin="FFMPEG")
        else:
            imageio.imwrite(
                part,
                images,
                extension=path.suffix.lower(),
                duration=1000 / fps,
                loop=0,
                plugin="pillow",
            )

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except OSError as e:
        raise UserError(f"{path} cannot be written: {e.strerror or e}") from e


def command_line() -> None:
    """`python -m erl.film`."""
    main(film, FilmConfig, __doc__ or "", program="erl.film")
