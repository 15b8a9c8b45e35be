from __future__ import annotations

import pytest
import torch

from conceptry.errors import IncompatibleError
from conceptry.trainer.objectives import NoiseSchedule, read_schedule, weighted_error
from conceptry.trainer.optimizers import scale_rate
from conceptry.trainer.randomness import draw_step, seed_generator
from conceptry.trainer.settings import Settings
from tests.fakes.pipelines import make_pipeline

CPU = torch.device("cpu")


def draw(step: int, *, seed: int = 3, pictures: int = 5, batch_size: int = 4):  # type: ignore[no-untyped-def]  # noqa: ANN201
    return draw_step(seed=seed, step=step, pictures=pictures, batch_size=batch_size, train_timesteps=1000)


def test_a_step_draws_the_same_whatever_was_drawn_before() -> None:
    alone = draw(7)
    for step in range(7):
        draw(step)
    again = draw(7)
    assert torch.equal(alone.pictures, again.pictures)
    assert torch.equal(alone.timesteps, again.timesteps)
    assert torch.equal(alone.prompts, again.prompts)
    assert not torch.equal(alone.timesteps, draw(8).timesteps)
    assert not torch.equal(alone.timesteps, draw(7, seed=4).timesteps)


def test_each_picture_is_seen_once_before_any_is_seen_again() -> None:
    seen = torch.cat([draw(step).pictures for step in range(10)])
    for start in range(0, 40, 5):
        assert sorted(seen[start : start + 5].tolist()) == [0, 1, 2, 3, 4]
    assert seen[:5].tolist() != seen[5:10].tolist()


def test_timesteps_of_a_batch_cover_the_whole_range() -> None:
    found = draw(0, batch_size=10).timesteps
    assert sorted(int(step) // 100 for step in found) == list(range(10))


def test_random_numbers_for_different_purposes_differ() -> None:
    noise = torch.randn(4, generator=seed_generator(1, "noise", 2))
    latents = torch.randn(4, generator=seed_generator(1, "latents", 2))
    assert not torch.equal(noise, latents)


@pytest.mark.parametrize("shape", ["sd1", "sd2"])
def test_noisy_latents_and_targets_are_those_of_the_bases_own_scheduler(shape: str) -> None:
    from diffusers import DDPMScheduler

    pipeline = make_pipeline("sd1" if shape == "sd1" else "sd2")
    schedule = read_schedule(pipeline, CPU)
    reference = DDPMScheduler.from_config(pipeline.scheduler.config)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=seed_generator(0, "check"))
    timesteps = torch.tensor([0, 500, 999])
    torch.testing.assert_close(
        schedule.add_noise(clean, noise, timesteps), reference.add_noise(clean, noise, timesteps)
    )
    expected = noise if shape == "sd1" else reference.get_velocity(clean, noise, timesteps)
    torch.testing.assert_close(schedule.make_target(clean, noise, timesteps), expected)


def test_min_snr_weights_are_those_of_the_paper() -> None:
    epsilon = read_schedule(make_pipeline("sd1"), CPU)
    velocity = read_schedule(make_pipeline("sd2"), CPU)
    timesteps = torch.tensor([1, 400, 900])
    snr = (epsilon.signal[timesteps] / epsilon.noise[timesteps]) ** 2
    torch.testing.assert_close(epsilon.weigh(timesteps, 5.0), torch.minimum(snr, torch.tensor(5.0)) / snr)
    torch.testing.assert_close(
        velocity.weigh(timesteps, 5.0), torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)
    )
    assert torch.equal(epsilon.weigh(timesteps, None), torch.ones(3))


def test_where_no_signal_is_left_a_sample_has_the_weight_of_all_that_is_nearly_noise() -> None:
    signal = torch.tensor([0.9, 1e-3, 0.0])
    schedule = NoiseSchedule("epsilon", signal, (1 - signal.square()).sqrt())
    assert torch.equal(schedule.weigh(torch.tensor([1, 2]), 5.0), torch.ones(2))


def test_a_flow_goes_straight_from_the_picture_to_the_noise() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = make_pipeline("sd1")
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    schedule, timesteps = read_schedule(pipeline, CPU), torch.tensor([0, 500, 999])
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=seed_generator(0, "check"))
    noisy, sigma = schedule.add_noise(clean, noise, timesteps), schedule.tell(timesteps).view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy - sigma * schedule.make_target(clean, noise, timesteps), clean)


def test_a_base_that_predicts_something_else_is_refused() -> None:
    pipeline = make_pipeline("sd1")
    pipeline.scheduler.register_to_config(prediction_type="score")
    with pytest.raises(IncompatibleError, match="prediction type 'score' cannot be trained on"):
        read_schedule(pipeline, CPU)


def test_the_error_weighs_each_sample_by_itself() -> None:
    prediction, target = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    assert float(weighted_error(prediction, target, torch.tensor([1.0, 3.0]))) == 2.0


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    settings = Settings(
        steps=100, batch_size=1, learning_rates={"x": 1.0}, warmup_steps=10, schedule="cosine"
    )
    rates = [scale_rate(settings, step) for step in range(100)]
    assert rates[0] < rates[5] < rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01
