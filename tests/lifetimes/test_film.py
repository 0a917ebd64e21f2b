import os

import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.mujoco.inverted_pendulum_v4 import InvertedPendulumEnv
from PIL import Image, ImageSequence
from plain_evaluation import evaluate

from erl.cli import parse
from erl.errors import UserError
from erl.learners import resolve_engine
from erl.lifetimes.film import FilmConfig, _write, choose_renderer, diverging, film, panel_image
from erl.lifetimes.living import Cohort, live
from erl.lifetimes.models import load_model
from erl.lifetimes.trace import trace
from erl.statistics import number_text
from erl.worlds.reservoirs import Context, ReservoirParams
from erl.worlds.specification import LearnerSpec, LifetimeSpec, Seeds
from erl.worlds.tasks import Task

RE2 = {
    "init_steps": 100,
    "learning_starts": 50,
    "batch_size": 16,
    "pr": 8,
    "frac_frames_train": 0.05,
    "eval_freq": 0,
}


def trained(folder, learner, env_id="Pendulum-v1", steps=1300, **config):
    context = Context((ReservoirParams(units=8, sr=0.9, lr=0.5),))
    task, seeds = Task(env_id), Seeds.derive(1, "single", 0)
    how = LearnerSpec(learner, config, resolve_engine(learner, "auto", config))
    spec = LifetimeSpec(task, how, steps, seeds, context, 2, "final_eval")
    (record,) = live(Cohort((spec,), models=(str(folder / "seed_0"),)))
    assert record.error is None, record.traceback
    return record


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "config"),
    [
        ("PPO", {"n_steps": 64}),
        ("RecurrentPPO", {"n_steps": 64, "policy_kwargs": {"lstm_hidden_size": 8}}),
        ("SAC", {"learning_starts": 1200, "normalize": True}),
        ("ERL-Re2", RE2),
    ],
)
def test_a_saved_agent_is_the_one_that_was_trained(tmp_path, learner, config):
    record = trained(tmp_path, learner, **config)
    for path in (tmp_path / "seed_0", f"{tmp_path}/seed_0.zip"):
        spec, agent = load_model(path)
        assert spec == record.spec
        again = evaluate(agent, spec.make_env(), 2, spec.seeds.evaluation)
        assert again.returns == pytest.approx(record.final_returns, rel=1e-6)


def test_the_agent_beside_another_too(tmp_path):
    record = trained(tmp_path, "ERL-Re2", **RE2)
    spec, agent = load_model(tmp_path / "seed_0.rl.zip")
    again = evaluate(agent, spec.make_env(), 2, spec.seeds.evaluation)
    assert list(again.returns) == pytest.approx(record.inner["final_returns"]["rl"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_a_film_shows_the_episode(tmp_path, sink, suffix):
    trained(tmp_path, "PPO", n_steps=64)
    file = tmp_path / "films" / f"a{suffix}"
    assert film(FilmConfig(model=f"{tmp_path}/seed_0", file=str(file), steps=12), sink) == 0
    frames = frames_of(file)
    assert frames.shape == (13, 500, 500, 3)
    assert (np.abs(np.diff(frames.astype(int), axis=0)).max((1, 2, 3)) > 0).all()
    assert "12 steps, the episode has not ended" in str(sink)
    with pytest.raises(UserError, match="--overwrite"):
        film(FilmConfig(model=f"{tmp_path}/seed_0", file=str(file), steps=12), sink)


@pytest.mark.parametrize("fps", [30, 15, 25])
def test_a_gif_keeps_its_pace(fps, tmp_path):
    shades = [Image.new("RGB", (8, 8), (k, 0, 0)) for k in range(fps)]
    _write(tmp_path / "a.gif", shades, fps)
    with Image.open(tmp_path / "a.gif") as film:
        times = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert len(times) == fps
    assert sum(times) == 1000
    assert max(times) - min(times) <= 10


def test_a_film_of_a_slow_environment_keeps_its_pace(tmp_path, sink, monkeypatch):
    slow = CartPoleEnv.metadata | {"render_fps": 0.5}
    monkeypatch.setattr(CartPoleEnv, "metadata", slow)
    trained(tmp_path, "PPO", "CartPole-v1", 64, n_steps=32, batch_size=32)
    file = tmp_path / "a.gif"
    assert film(FilmConfig(model=f"{tmp_path}/seed_0", file=str(file), steps=2), sink) == 0
    with Image.open(file) as made:
        times = [frame.info["duration"] for frame in ImageSequence.Iterator(made)]
    assert sum(times) == 6000  # of three pictures, two of which look alike


def frames_of(file):
    if file.suffix == ".mp4":
        return imageio.imread(file, plugin="FFMPEG")
    return imageio.imread(file, plugin="pillow", mode="RGB", index=...)


def test_a_whole_episode_with_the_panel_beside_it(tmp_path, sink):
    trained(tmp_path, "PPO", n_steps=64)
    file = tmp_path / "a.webp"
    config = FilmConfig(
        model=f"{tmp_path}/seed_0", file=str(file), panel=True, width=81, overwrite=True
    )
    assert film(config, sink) == 0
    assert frames_of(file).shape == (201, 82, 162, 3)
    # Its return is the one that the same policy has in the same episode.
    spec, agent = load_model(tmp_path / "seed_0")
    assert f"return {number_text(evaluate(agent, spec.make_env(), 1, 0).returns[0])}" in str(sink)
    assert "filming a.webp: step 50" in sink.statuses


def test_the_panel_shows_the_state_and_the_return(tmp_path):
    trained(tmp_path, "PPO", n_steps=64)
    spec, agent = load_model(tmp_path / "seed_0")
    episode = trace(spec, agent, 0, 30)
    shown = panel_image(episode, 30, 200, 158)
    # 150 steps on 150 pixels, and the last column is the present.
    rows = np.linspace(20, 115, 8, endpoint=False).astype(int) + 5
    column = shown[rows, 153]
    assert np.abs(column.astype(int) - diverging(episode.states[30])).max() <= 1
    assert (shown[rows, 6] == 255).all()  # before the episode
    assert diverging(np.array([-1.0, 0.0, 1.0])).tolist() == [
        [84, 39, 136],
        [255, 255, 255],
        [179, 88, 6],
    ]


def test_frames_of_a_few_pixels_are_enlarged_beside_a_panel(tmp_path, sink, monkeypatch):
    trained(tmp_path, "PPO", n_steps=64)
    small = np.zeros((20, 33, 3), np.uint8)
    monkeypatch.setattr("gymnasium.envs.classic_control.PendulumEnv.render", lambda env: small)
    for panel, sides in ((True, (80, 264)), (False, (20, 34))):
        file = tmp_path / f"{panel}.webp"
        config = FilmConfig(
            model=f"{tmp_path}/seed_0", file=str(file), panel=panel, steps=3, overwrite=True
        )
        assert film(config, sink) == 0
        assert frames_of(file).shape[1:3] == sides


def test_a_machine_without_a_renderer_says_so(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("erl.lifetimes.film.available_renderer", lambda: None)
    with pytest.raises(UserError, match="neither EGL nor OSMesa works; install one"):
        choose_renderer("Swimmer-v4")
    assert choose_renderer("Pendulum-v1") is None  # pygame draws it
    monkeypatch.setattr("erl.lifetimes.film.available_renderer", lambda: "osmesa")
    assert choose_renderer("Swimmer-v4") == "osmesa"
    assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.setattr("erl.lifetimes.film.available_renderer", lambda: None)
    assert choose_renderer("Swimmer-v4") == "osmesa"  # who has set it decides
    monkeypatch.setenv("DISPLAY", ":0")
    assert choose_renderer("Swimmer-v4") is None


class OwnPendulum(InvertedPendulumEnv):
    """A user's environment that inherits from one of Gymnasium's."""


@pytest.mark.parametrize("entry", [OwnPendulum, f"{__name__}:OwnPendulum"])
def test_an_environment_made_of_mujocos_classes_is_one_of_them(entry, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("erl.lifetimes.film.available_renderer", lambda: "osmesa")
    monkeypatch.setitem(gym.registry, "Own-v0", gym.envs.registration.EnvSpec("Own-v0", entry))
    monkeypatch.setitem(
        gym.registry, "Gone-v0", gym.envs.registration.EnvSpec("Gone-v0", "no_module:Own")
    )
    assert choose_renderer(f"{__name__}:Own-v0") == "osmesa"
    assert choose_renderer("Gone-v0") is None


def test_the_module_of_an_environment_is_imported_before_it_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("erl.lifetimes.film.available_renderer", lambda: "osmesa")
    (tmp_path / "drawn_later.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv\n"
        "class Mine(InvertedPendulumEnv):\n    pass\n"
        "gym.register('DrawnLater-v0', Mine)\n"
    )
    assert choose_renderer("drawn_later:DrawnLater-v0") == "osmesa"


@pytest.mark.slow
def test_a_normalised_model_without_its_statistics_is_refused(tmp_path):
    trained(tmp_path, "SAC", learning_starts=1200, normalize=True)
    (tmp_path / "seed_0.vecnormalize.pkl").unlink()
    with pytest.raises(UserError, match=r"vecnormalize\.pkl is missing"):
        load_model(tmp_path / "seed_0")


def test_mp4_without_its_package_is_refused_before_anything_is_drawn(tmp_path, sink, monkeypatch):
    trained(tmp_path, "PPO", n_steps=64)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install imageio-ffmpeg"):
        film(FilmConfig(model=f"{tmp_path}/seed_0", file=f"{tmp_path}/a.MP4"), sink)


def test_bad_input_and_what_it_leaves(tmp_path, sink):
    with pytest.raises(UserError, match="--model is missing"):
        parse(FilmConfig, [])
    with pytest.raises(UserError, match="at least 1"):
        FilmConfig(model="a", steps=0)
    with pytest.raises(UserError, match="no model"):
        film(FilmConfig(model=f"{tmp_path}/none"), sink)
    trained(tmp_path, "PPO", "toy_environments:Reach-v0", n_steps=64)
    with pytest.raises(UserError, match=r"must end in .mp4, .gif or .webp"):
        film(FilmConfig(model=f"{tmp_path}/seed_0", file="a.avi"), sink)
    with pytest.raises(UserError, match=rf"is a folder; --model takes one of {tmp_path}/seed_0$"):
        film(FilmConfig(model=str(tmp_path)), sink)
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(UserError, match="is a folder without saved agents"):
        film(FilmConfig(model=f"{tmp_path}/folder.gif"), sink)
    with pytest.raises(UserError, match="is not a file"):
        film(
            FilmConfig(model=f"{tmp_path}/seed_0", file=f"{tmp_path}/folder.gif", overwrite=True),
            sink,
        )
    with pytest.raises(UserError, match="cannot be written"):
        film(FilmConfig(model=f"{tmp_path}/seed_0", file="/proc/a.gif"), sink)
    with pytest.raises(UserError, match="must end in"):
        film(FilmConfig(model=f"{tmp_path}/seed_0", file="a.avi"), sink)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"draw|filmed|cannot be made"):
        film(FilmConfig(model=f"{tmp_path}/seed_0"), sink)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "seed_0.zip").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        film(FilmConfig(model=f"{tmp_path}/seed_0"), sink)
    (tmp_path / "seed_0.json").write_text("{}")
    with pytest.raises(UserError, match=r"seed_0\.json, beside the model, does not say what"):
        film(FilmConfig(model=f"{tmp_path}/seed_0"), sink)
