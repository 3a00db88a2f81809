import subprocess
import sys

import pytest
from pydantic import ValidationError

from compute.dictionaries import DictionarySettings


def test_settings_do_not_import_torch():
    code = (
        "import sys; from compute.dictionaries import DictionarySettings; DictionarySettings();"
        "raise SystemExit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_more_active_than_there_are_is_refused():
    with pytest.raises(ValidationError, match="k = 9 exceeds n_concepts = 8"):
        DictionarySettings(n_concepts=8, k=9)


def test_overlapping_warm_up_and_decay_are_refused():
    with pytest.raises(ValidationError, match="together exceed 1"):
        DictionarySettings(warm_up=0.6, decay=0.6)


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError):
        DictionarySettings(concepts=8)


def test_every_field_says_what_it_is():
    assert all(field.description for field in DictionarySettings.model_fields.values())


def test_learning_rate_rises_stays_and_falls():
    settings = DictionarySettings(steps=100, warm_up=0.1, decay=0.5, learning_rate=1e-3)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9:51] == [1e-3] * 42
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert 0 < rates[-1] < 5e-5
