"""Tasks of texts: what is a token, what is held out, files of your own, and what is refused."""
import zlib

import pytest
import torch
from models_for_tests import berts

import fsmerge_lite as fsm
from fsmerge_lite.tasks.texts import (
    BYTE,
    KINDS,
    LANGUAGES,
    LENGTH,
    PAD,
    START,
    TEXTS,
    UNSEEN,
    VOCABULARY,
    decode,
    edited,
    encode,
    examples,
    held_out,
    names,
)


def test_a_text_is_its_bytes():
    ids = encode(["aé", "Wien"], 6)
    assert ids.tolist() == [[START, 97 + BYTE, 0xC3 + BYTE, 0xA9 + BYTE, PAD, PAD],
                            [START, *(ord(c) + BYTE for c in "Wien"), PAD]]
    assert decode(ids) == ["aé", "Wien"] and ids.max() < VOCABULARY
    for text in ("", "five!!"):
        with pytest.raises(ValueError, match=f"1 to 5 bytes in UTF-8, got {len(text)}"):
            encode([text], 6)
    with pytest.raises(TypeError, match="texts must be a list, got 'Wien'"):
        encode("Wien")


def test_no_test_text_is_a_training_text_of_either_task():
    found = {name: examples(name) for name in TEXTS}
    train = set().union(*(found[name]["train"] for name in TEXTS))
    for name in TEXTS:
        assert not train & set(found[name]["test"])
        assert set(found[name]["train"].values()) == set(found[name]["test"].values()) == set(TEXTS[name])


def test_things_are_held_out_and_languages_too():
    assert not set(LANGUAGES) & set(UNSEEN)
    trained = {text for language in LANGUAGES for kind, key, text in names(language) if not held_out(kind, key)}
    for language in ("de", "vi"):
        for kind, key, text in names(language):
            if examples("language")["test"].get(text) == language:
                assert zlib.crc32(f"{kind}/{key}".encode()) % 4 == 0
    known = {text for language in LANGUAGES for *_, text in names(language)}
    unseen = {text for language in UNSEEN for *_, text in names(language)}
    assert set(examples("kind")["test"]) <= unseen - trained
    assert set(examples("language")["test"]) <= known - trained


def test_labels_are_what_babel_says():
    assert examples("language")["train"].keys() <= {text for lang in LANGUAGES for *_, text in names(lang)}
    found = {**examples("kind")["train"], **examples("kind")["test"]}
    assert found["Österreich"] == "territory" and found.get("Brazilian Real") == "currency"
    everything = {**examples("language")["train"], **examples("language")["test"]}
    assert everything["Österreich"] == "de"
    shared = {text for *_, text in names("de")} & {text for *_, text in names("fr")}
    assert shared and not shared & everything.keys()  # a name that two languages share has no language


@pytest.mark.parametrize("name", TEXTS)
def test_embedded_tasks(name):
    task = fsm.task(name)
    ids, labels = task.test()
    assert ids.shape == (1000, LENGTH) and ids.dtype == torch.int64 and task.shape == (LENGTH,)
    assert (ids[:, 0] == START).all() and labels.unique().numel() == len(task.classes)
    assert task.train_size > 10_000 and repr(task) == f"Task({name!r}, {len(TEXTS[name])} classes, texts of 32 tokens)"
    again = task.sample(50, seed=3)
    assert torch.equal(task.sample(50, seed=3)[0], again[0]) and not torch.equal(task.sample(50, seed=4)[0], again[0])
    assert {text: task.classes[label] for text, label in zip(decode(again[0]), again[1])}.items() <= examples(
        name)["train"].items()
    shorter = fsm.task(name, 16)
    assert shorter.sample(10)[0].shape == (10, 16) and shorter.train_size < task.train_size


def test_edited_copies_keep_most_of_a_text():
    ids = fsm.task("language").sample(500)[0]
    copies = edited(ids, torch.Generator().manual_seed(0))
    lengths, before = (copies != PAD).sum(1), (ids != PAD).sum(1)
    assert (copies[:, 0] == START).all() and (lengths <= before).all()
    assert ((copies == PAD).long().diff(dim=1) >= 0).all()  # padding comes last
    left_out = 1 - (lengths - 1).sum() / (before - 1).sum()
    assert 0.03 < left_out < 0.07
    assert copies.unique().tolist() == [i for i in copies.unique().tolist() if i in ids.unique().tolist()]
    assert torch.equal(edited(ids, chance=0.0), ids) and torch.equal(edited(ids[:1], chance=0.0), ids[:1])
    assert (edited(ids[:5], chance=2.0)[:, 1:] == PAD).any(1).all()


def test_calibration_of_texts():
    tasks = [fsm.task(name) for name in TEXTS]
    images = fsm.calibration(tasks, 16, 3)
    assert images.images.shape == (2 * 16 * 4, LENGTH) and images.images.dtype == torch.int64
    assert torch.equal(images.of(0)[:16], tasks[0].sample(16)[0])
    assert torch.equal(fsm.calibration(tasks, 16, 3).images, images.images)
    kept = fsm.calibration(tasks, 4, 1, augmentation=lambda ids: ids)
    assert torch.equal(kept.of(1)[:4], kept.of(1)[4:])


@pytest.mark.parametrize("augmentation, match", [
    ("paper", "augmentation must be 'light', 'paper' .of pictures."), ("none", "give augmented=0 with it"),
    (lambda ids: ids[1:], r"gave torch.int64 \(31,\), expected token ids \(32,\)"),
    (lambda ids: ids.float(), "gave torch.float32"), (lambda ids: "text", "gave str"),
])
def test_augmentations_of_texts_that_are_refused(augmentation, match):
    with pytest.raises(ValueError, match=match):
        fsm.calibration([fsm.task("kind"), fsm.task("language")], 2, 1, augmentation=augmentation)


def test_pictures_and_texts_do_not_mix():
    with pytest.raises(ValueError, match="images of one size"):
        fsm.calibration([fsm.task("kind"), fsm.task("digits")], 2, 1)


# ---------------------------------------------------------------- text files

@pytest.fixture
def folder(tmp_path):
    for split, extra in (("train", ""), ("test", "x")):
        (tmp_path / split).mkdir()
        for label in ("cats", "dogs"):
            lines = [f"{label}{extra} {i}" for i in range(12)]
            (tmp_path / split / f"{label}.txt").write_text("\n".join([*lines, "", lines[0]]), encoding="utf-8")
    return tmp_path


def test_text_files(folder):
    task = fsm.text_task(folder, test_size=20)
    assert task.classes == ("cats", "dogs") and task.train_size == 24 and task.name == folder.name
    ids, labels = task.test()
    assert len(ids) == 20
    assert all(text.startswith(f"{task.classes[label]}x") for text, label in zip(decode(ids), labels))
    turned = fsm.text_task(folder, classes=["dogs", "cats"])
    ids, labels = turned.sample(24)
    assert turned.classes == ("dogs", "cats") and decode(ids[labels == 0])[0].startswith("dogs")
    own = fsm.text_task(folder, 4, tokenize=lambda texts: torch.ones(len(texts), 4, dtype=torch.int64))
    assert own.shape == (4,) and (own.sample(3)[0] == 1).all()
    original = fsm.train_on(task, fsm.TextEncoder(VOCABULARY, LENGTH, 16, 1, 2), steps=30, lr=3e-3, progress=False)
    assert original.card["accuracy"] > 70  # cats or dogs
    bert, = berts([16], vocab_size=VOCABULARY, max_position_embeddings=LENGTH)
    assert fsm.train_on(task, bert, steps=2, progress=False).head.out_features == 2


@pytest.mark.parametrize("change, error, match", [
    (lambda f: (f / "test" / "dogs.txt").unlink(), ValueError, "test has the classes cats; expected cats, dogs"),
    (lambda f: (f / "train" / "cats.txt").write_text("\n \n"), ValueError, "train has no texts of cats"),
    (lambda f: (f / "test" / "cats.txt").write_text("dogs 3\nnew"), ValueError, "1 texts are in both .*: dogs 3; keep"),
    (lambda f: (f / "train" / "cats.txt").write_text("x" * 40), ValueError, "1 to 31 bytes in UTF-8, got 40: 'xxx"),
    (lambda f: (f / "train" / "cats.txt").write_bytes(b"caf\xe9"), ValueError, "train is not UTF-8"),
    (lambda f: [each.unlink() for each in (f / "train").iterdir()], FileNotFoundError, "no text files in .*train"),
])
def test_text_files_that_are_refused(folder, change, error, match):
    change(folder)
    with pytest.raises(error, match=match):
        fsm.text_task(folder)


def test_other_bad_input_to_text_files(folder):
    with pytest.raises(FileNotFoundError, match="no text files in"):
        fsm.text_task(folder / "nowhere")
    with pytest.raises(ValueError, match=r"the tokenizer gave a list, expected token ids \(24, 32\)"):
        fsm.text_task(folder, tokenize=lambda texts: [[1]])
    with pytest.raises(ValueError, match="expected cats, mice"):
        fsm.text_task(folder, classes=["cats", "mice"])
    with pytest.raises(ValueError, match="length must be a whole number >= 2, got 1"):
        fsm.text_task(folder, 1)
    with pytest.raises(ValueError, match=r"the model reads inputs \(3, 32, 32\)"):
        fsm.train_on(fsm.text_task(folder), fsm.vit(8, 1, 2))


def test_kinds_are_sorted_and_languages_too():
    assert list(KINDS) == sorted(KINDS) and list(LANGUAGES) == sorted(LANGUAGES)
