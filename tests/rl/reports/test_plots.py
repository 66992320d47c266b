import sys

from wire_data import choice, group, load_tokenizer, user

from tandem.rl.batch import build_batch
from tandem.rl.config import TrainingConfig
from tandem.rl.reports.plots import plot_batch


def test_each_packed_sequence_has_a_picture_of_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # pyplot isn't thread-safe, so importing it must fail
    groups = [
        group((0.0, [user("1 + 6 = ?"), choice("six")]), (1.0, [user("1 + 6 = ?"), choice("seven")])),
        group((0.0, [user("2 + 2 = ?"), choice("five, I think")]), (1.0, [user("2 + 2 = ?"), choice("four")])),
    ]
    batch = build_batch(groups, load_tokenizer(), TrainingConfig(packed_sequence_length=40), max_model_len=256)
    assert len(batch.sequences) > 1
    pictures = plot_batch(batch.sequences)
    assert list(pictures) == [f"sequence_{index:03d}.png" for index in range(len(batch.sequences))]
    assert all(png.startswith(b"\x89PNG\r\n\x1a\n") for png in pictures.values())
    assert len(set(pictures.values())) == len(pictures)


def test_nothing_to_train_has_no_pictures():
    assert plot_batch([]) == {}
