import pytest
import torch

from compute.dictionaries import DictionarySettings, DictionaryTrainer, train_levels


def batches(n: int, start: int = 0):
    for step in range(start, n):
        generator = torch.Generator().manual_seed(step)
        yield {
            "layer-01": torch.randn(64, 8, generator=generator),
            "layer-02": torch.randn(64, 12, generator=generator),
        }


SETTINGS = {
    "layer-01": DictionarySettings(n_concepts=16, k=2, steps=12),
    "layer-02": DictionarySettings(n_concepts=24, k=3, steps=12),
}


def test_levels_are_trained_as_if_alone():
    together = train_levels(batches(12), SETTINGS)
    for level, settings in SETTINGS.items():
        alone = DictionaryTrainer(settings)
        for batch in batches(12):
            alone.step(batch[level])
        assert torch.equal(together[level].dictionary.directions, alone.dictionary.directions)


def test_training_stops_when_every_level_has_its_steps():
    stream = batches(1000)
    shorter = SETTINGS | {"layer-02": DictionarySettings(n_concepts=24, k=3, steps=5)}
    trainers = train_levels(stream, shorter)
    assert {level: t.steps_done for level, t in trainers.items()} == {
        "layer-01": 12,
        "layer-02": 5,
    }
    assert torch.equal(next(stream)["layer-01"], list(batches(13))[12]["layer-01"]), (
        "no batch is consumed in vain"
    )


def test_checkpoints_of_all_levels_resume_bit_exactly():
    saved = {}

    def keep(metrics, trainers):
        if metrics["layer-01"].step == 7:
            saved.update({level: t.checkpoint() for level, t in trainers.items()})

    whole = train_levels(batches(12), SETTINGS, after_step=keep)
    restored = {level: DictionaryTrainer.from_checkpoint(data) for level, data in saved.items()}
    resumed = train_levels(batches(12, start=7), SETTINGS, trainers=restored)
    for level in SETTINGS:
        assert torch.equal(whole[level].dictionary.directions, resumed[level].dictionary.directions)


def test_a_batch_without_a_level_is_refused():
    with pytest.raises(ValueError, match="lacks level 'layer-02'"):
        train_levels([{"layer-01": torch.randn(4, 8)}], SETTINGS)


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="empty"):
        train_levels([], SETTINGS)


def test_resuming_with_other_settings_is_refused():
    trainer = DictionaryTrainer(SETTINGS["layer-02"])
    with pytest.raises(ValueError, match="layer-01"):
        train_levels(batches(1), SETTINGS, trainers={"layer-01": trainer})
