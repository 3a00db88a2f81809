"""The preflight over the families of transformers, and the page that says what was proved."""

import pytest
from transformers import AutoConfig

from compute.models.language_facts import LanguageFacts
from tests.families import FAMILIES, MARK, PAGE, buildable, row, table, tried

WRITTEN = PAGE.read_text(encoding="utf-8").partition(MARK)[2]


@pytest.mark.parametrize(
    "family",
    ["bert", "bloom", "falcon", "gemma3n_text", "gemma4_unified_text", "gpt_oss", "llama", "mamba"],
)
def test_the_page_says_what_is_proved(family):
    assert row(family, tried(family, buildable(family))) in WRITTEN.splitlines()


@pytest.mark.slow
def test_the_whole_table_is_what_is_proved():
    lines, absent = table(FAMILIES)
    assert len(lines.splitlines()) - 2 >= 160
    assert lines in WRITTEN
    assert absent in WRITTEN


@pytest.mark.parametrize("family", ["musicgen", "emu3_text_model"])
def test_a_family_that_no_class_reads_is_refused_in_a_sentence(family, tmp_path):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"of the family '{family}', which is not read as a lang"):
        LanguageFacts.read(tmp_path).points()
