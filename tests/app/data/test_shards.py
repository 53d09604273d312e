"""wae.data.shards: WebDataset shards give the samples of a folder, each once; damage is reported."""

import gc
import gzip
import os
import tarfile
from io import BytesIO

import numpy as np
import pytest
import torch
from data_sets import check_options_arrive, same, small
from PIL import Image

from wae import cli
from wae.data import shards as module
from wae.data.dataset import DatasetError
from wae.data.images import ImageError
from wae.data.input import Input
from wae.data.loading import batches, fingerprint, open_dataset
from wae.storage.checkpoint import load_classifier
from wae.training import observers

wds = pytest.importorskip("webdataset")

CLASSES = ("cat", "dog")


def write_shards(photos, folder):
    """Let webdataset write the images of ``photos``, three per shard; return the keys of train in order."""
    folder.mkdir()
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    keys = []
    for part in ("train", "val"):
        images = [
            (path, label) for label in range(2) for path in sorted((photos / part / CLASSES[label]).iterdir())
        ]
        for shard in range(0, len(images), 3):
            with wds.TarWriter(str(folder / f"{part}-{shard // 3:03}.tar")) as tar:
                for path, label in images[shard : shard + 3]:
                    key = f"{CLASSES[label]}_{path.stem}"
                    tar.write(
                        {"__key__": key, "png": path.read_bytes(), "cls": label, "json": {"from": "here"}}
                    )
                    keys += [key] if part == "train" else []
    return keys


@pytest.fixture
def pattern(photos):
    write_shards(photos, photos / "shards")
    return f"{photos}/shards/train-{{000..002}}.tar"


def shards(pattern, train=True, **options):
    return module.shards(pattern, train, Input(16, 20), **options)


def add(path, name, content=b"", kind=tarfile.REGTYPE):
    """Append a member to a shard."""
    with tarfile.open(path, "a", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.size, member.type = len(content), kind
        tar.addfile(member, BytesIO(content))


# ------------------------------------------------------------------------------------------------ samples


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("train", [True, False])
def test_samples_are_those_of_the_folder(photos, pattern, train, augment):
    ours, files = (
        make(where, train, augment=augment, seed=3) for make, where in ((shards, pattern), (small, photos))
    )
    assert len(ours) == len(files)
    assert ours.labels == files.labels
    indices = [len(files) - 1, 0, 1]
    assert same(ours.batch(indices, 2), files.batch(indices, 2))
    assert same(ours.subset(indices).batch(range(3), 0), files.subset(indices).batch(range(3), 0))
    for data in (ours, files):
        before = data.batch(indices, 2)
        assert same(data.plain().batch(indices, 2), small(photos, train).batch(indices, 0))
        assert same(data.batch(indices, 2), before)
    (photos / "shards" / "classes.txt").write_text("cat\ndog\ncow\n")
    other = shards(pattern, train).renumbered((2, 0, 1))
    assert other.labels == ("dog", "cow", "cat")
    assert other.batch(indices, 0)[1].tolist() == [0, 2, 2]  # a dog and two cats


def test_options_of_open_dataset_are_passed_on(pattern):
    check_options_arrive(pattern)
    known, other = (fingerprint(data) for data in (shards(pattern), shards(pattern).renumbered((1, 0))))
    assert known["image size"] == [16, 16]
    assert known["targets"] != other["targets"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_whose_name_ends_with_tar_is_a_folder(photos, slash):
    folder = photos / "photos.tar"
    folder.mkdir()
    for part in ("train", "val"):
        (photos / part).rename(folder / part)
    assert open_dataset(f"{folder}{slash}", True, False, 0).labels == CLASSES


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_finds_the_same_samples(pattern):
    """webdataset's own reader, in its own order, finds the same number of images, bytes and classes."""
    urls = [str(path) for path in shards(pattern).paths]
    theirs = [
        (sample["png"], int(sample["cls"]))
        for sample in wds.WebDataset(urls, shardshuffle=False, empty_check=False)
    ]
    gc.collect()  # closes what webdataset left open, before another test does
    ours = shards(pattern)
    assert len(theirs) == len(ours) == 8
    for index, (content, label) in enumerate(theirs):
        with open(ours.paths[ours.shard[index]], "rb") as shard:
            shard.seek(ours.offset[index])
            assert shard.read(ours.bytes[index]) == content
        assert ours.targets[index] == label


@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_is_read_by_one_process_in_an_order_given_by_the_seed(pattern, workers):
    """Two ranks together take the batches of one process."""
    data = shards(pattern)
    wanted = {seed: [images for images, _ in batches(data, 4, 1, seed, True)] for seed in (0, 1)}
    ranks = [batches(data, 4, 1, 0, True, rank, 2, workers) for rank in (0, 1)]
    for step, (one, other) in enumerate(zip(*ranks, strict=True)):
        assert torch.equal(torch.stack((one[0], other[0]), 1).flatten(0, 1), wanted[0][step])
    every = {image.numpy().tobytes() for images in wanted[0] for image in images}
    assert len(every) == len(data) == 8
    assert not all(map(torch.equal, wanted[0], wanted[1]))


# ------------------------------------------------------------------------------------------------- indices


def test_the_index_is_reused_until_the_shard_changes(pattern, monkeypatch):
    whole = fingerprint(shards(pattern))
    made = []
    monkeypatch.setattr(module, "_made", lambda path, make=module._made: made.append(path.name) or make(path))
    assert fingerprint(shards(pattern)) == whole
    assert not made
    first = shards(pattern).paths[0]
    add(first, "new.png", b"x")
    add(first, "new.cls", b"1\n")
    assert len(shards(pattern)) == 9
    assert made == ["train-000.tar"]
    assert fingerprint(shards(pattern)) != whole


@pytest.mark.parametrize(
    "change", [lambda size, time: (size + 512, time), lambda size, time: (size, time + 1)]
)
def test_the_index_is_rebuilt_if_size_or_time_of_the_shard_differ(pattern, change):
    path = shards(pattern).paths[0]
    expected = shards(pattern).offset
    index = path.with_suffix(".index.npz")
    known = dict(np.load(index))
    size, time = change(path.stat().st_size, path.stat().st_mtime_ns)
    np.savez(index, **{**known, "offset": known["offset"] + 1})
    assert not np.array_equal(shards(pattern).offset, expected)  # the index is used
    os.truncate(path, size)  # a longer file ends with more zeros
    os.utime(path, ns=(time, time))
    assert np.array_equal(shards(pattern).offset, expected)


@pytest.mark.parametrize("damage", [b"", b"no index", b"PK\x03\x04", "cut", "version"])
def test_a_damaged_index_is_rebuilt(pattern, damage):
    expected = fingerprint(shards(pattern))
    index = shards(pattern).paths[0].with_suffix(".index.npz")
    if damage == "cut":
        os.truncate(index, index.stat().st_size // 2)
    elif damage == "version":
        known = dict(np.load(index))
        del known["version"]
        np.savez(index, **known)
    else:
        index.write_bytes(damage)
    assert fingerprint(shards(pattern)) == expected
    assert "version" in np.load(index)


def test_without_disk_space_the_index_is_rebuilt_each_time(pattern, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "written", full)
    assert len(shards(pattern)) == 8
    assert not list(shards(pattern).paths[0].parent.glob("*.npz"))


# ------------------------------------------------------------------------------------------------- damage


def overwrite_header(path):
    with tarfile.open(path) as tar:
        second = tar.getmembers()[3].offset
    with open(path, "r+b") as file:
        file.seek(second)
        file.write(b"\xff" * 200)


def compress(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


def announce_endless_member(path):
    """Prepend a member that announces more bytes than any file has."""
    member = tarfile.TarInfo("notes.json")
    member.size = 2**70
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + path.read_bytes())


def announce_image(path, size):
    """Write a shard whose only image announces ``size`` bytes, but none follow."""
    member = tarfile.TarInfo("one.png")
    member.size = size
    path.write_bytes(member.tobuf() + bytes(512))


DAMAGE = {
    r"train-001.tar: there is no such shard": lambda path: path.unlink(),
    r"train-001.tar: there is no such shard; 1 other missing too$": lambda path: [
        path.with_name(f"train-00{n}.tar").unlink() for n in (1, 2)
    ],
    r"train-001.tar: the shard is damaged or truncated at byte [\d,]+": overwrite_header,
    r"train-001.tar: this is not a readable tar file \(": compress,
    r"train-001.tar: (this is not a readable tar file|the shard is damaged or truncated)": lambda path: (
        os.truncate(path, 5000)
    ),
    r"train-001.tar: there are no images in this shard": lambda path: tarfile.open(path, "w").close(),
    r"sample one has no class \(a member .cls\)": lambda path: add(path, "one.jpg", b"x"),
    r"sample one has no image": lambda path: add(path, "one.cls", b"0"),
    r"sample dog_0 has more than one image": lambda path: add(path, "dog_0.jpg", b"x"),
    r"one.cls needs a class number, got 'dog'": lambda path: add(path, "one.cls", b"dog"),
    r"one.cls needs a class number, got 'more than a number'": lambda path: add(path, "one.cls", b"9" * 30),
    r"classes.txt: names 2 classes, but an image has class number 2": lambda path: [
        add(path, "one.png", b"x"),
        add(path, "one.cls", b"2"),
    ],
    r"train-001.tar: this is not a readable tar file \(.*integer": announce_endless_member,
    r"one.png is larger than 1,073,741,824 bytes": lambda path: announce_image(path, 2**30 + 1),
    r"train-001.tar: this is not a readable tar file \(unexpected end of data": lambda path: announce_image(
        path, 2**30
    ),
    r"image has class number 123456789": lambda path: [
        add(path, "one.PNG", b"x"),
        add(path, "one.CLS", b"123456789\r\n"),
    ],
    r"one.cls needs a class number, got 'more": lambda path: add(path, "one.cls", b"1" * 12),
    r"classes.txt: is missing; it needs the name of each": lambda path: path.with_name(
        "classes.txt"
    ).unlink(),
    r"classes.txt: cannot be read \(.*decode": lambda path: path.with_name("classes.txt").write_bytes(
        b"\xff"
    ),
    r"classes.txt: cannot be read \(Is a directory\)$": lambda path: [
        path.with_name("classes.txt").unlink(),
        path.with_name("classes.txt").mkdir(),
    ],
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_reported_in_one_line(pattern, message, photos):
    DAMAGE[message](photos / "shards" / "train-001.tar")
    with pytest.raises(DatasetError, match=message) as caught:
        shards(pattern)
    assert "\n" not in str(caught.value)


def test_truncation_at_the_end_of_a_member_is_detected(pattern, photos):
    """tarfile takes this for the end of the shard, so images would be lost."""
    path = photos / "shards" / "train-001.tar"
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmembers()[-3].offset)
    with pytest.raises(DatasetError, match="the shard is damaged or truncated"):
        shards(pattern)


def test_other_members_are_ignored(pattern, photos):
    path = photos / "shards" / "train-001.tar"
    add(path, "README")
    add(path, "folder.png", kind=tarfile.DIRTYPE)
    add(path, "link.png", kind=tarfile.SYMTYPE)
    assert len(shards(pattern)) == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train-{000..002.tar", "train-{000..002.tar: "),
        ("images-{000..001}.tar", "there is no such shard"),
        ("train-{000,001,000}.tar", "names a shard more than once"),
        ("train-000", "need a pattern that ends with .tar, or a folder with train"),
        ("val-{000..001}.tar", "need train in the names of the shards, as in train-000.tar"),
    ],
)
def test_invalid_patterns_are_refused(photos, pattern, name, message):
    with pytest.raises(DatasetError, match=message):
        shards(str(photos / "shards" / name), train=False)


def move_to_folders(folder, keep_part=True):
    """Move the shards to a folder for each part, with or without the part in their names."""
    for path in sorted(folder.glob("*.tar")):
        part, _, number = path.name.partition("-")
        (folder / part).mkdir(exist_ok=True)
        path.rename(folder / part / (path.name if keep_part else number))


@pytest.mark.parametrize(("name", "twice"), [("train/{000..002}.tar", False), ("", False), ("", True)])
def test_the_folder_name_may_say_the_part(photos, pattern, name, twice):
    """In a folder of both parts, the names of the shards may say it too."""
    folder = photos / "shards"
    expected = [fingerprint(open_dataset(pattern, train, False, 0)) for train in (True, False)]
    move_to_folders(folder, keep_part=twice)
    for part, known in zip((True, False), expected, strict=True):
        found = fingerprint(open_dataset(folder / name, part, False, 0))
        names = known.pop("shards")
        assert found.pop("shards") == (names if twice else [name.partition("-")[2] for name in names])
        assert found == known


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train-00000-of-00003", ("val-00000-of-00002", "val-00001-of-00002")),
        ("train_0_of_3", ("val_0_of_2", "val_1_of_2")),
        ("train224-00", ("val224-00", "val224-01")),
        ("train0", ("val0", "val1")),
        ("train[a]*-00", ("val[a]*-00", "val[a]*-01")),
        ("train-[b]-00", ("test-[b]-00", "test-[b]-01")),
        ("[train]-train-00", ("[train]-val-00", "[train]-val-01")),
    ],
)
def test_all_held_out_shards_are_found(photos, pattern, train, held_out):
    folder = photos / "shards"
    (folder / "train-000.tar").rename(folder / f"{train}.tar")
    for number, name in enumerate(held_out):
        (folder / f"val-00{number}.tar").rename(folder / f"{name}.tar")
    for name in {f"_{held_out[0]}", held_out[0].replace("val", "test")} - {*held_out}:
        (folder / f"{name}.tar").touch()  # must be ignored
    found = shards(str(folder / f"{train}.tar"), train=False)
    assert [path.stem for path in found.paths] == list(held_out)
    assert len(found) == 4


def test_names_may_repeat_in_other_shards_and_parts_of_a_sample_need_not_be_adjacent(tmp_path):
    content = BytesIO()
    Image.new("RGB", (20, 20), (200, 0, 0)).save(content, "PNG")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    for number in range(2):
        path = tmp_path / f"train-{number}.tar"
        tarfile.open(path, "w").close()
        for name in ("a.png", "b.png", "a.cls", "b.cls"):
            add(path, name, content.getvalue() if name.endswith("png") else str(number).encode())
    data = shards(f"{tmp_path}/train-{{0..1}}.tar")
    assert data.targets.tolist() == [0, 0, 1, 1]
    assert len(data.batch(range(4), 0)[0]) == 4


def test_a_dot_in_a_samples_name_is_refused(pattern, photos):
    """Like webdataset, we compare names up to their first dot."""
    for name in ("22.05.png", "22.06.png"):
        add(photos / "shards" / "train-001.tar", name, b"image")
    with pytest.raises(DatasetError, match="sample 22 has more than one image"):
        shards(pattern)


def test_hidden_files_are_not_shards(photos, pattern):
    """macOS creates files like ._train-000.tar."""
    folder = photos / "shards"
    move_to_folders(folder)
    for path in [*folder.glob("*/*.tar")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert [len(open_dataset(folder, train, False, 0, 16)) for train in (True, False)] == [8, 4]


def test_archives_beside_class_folders_are_not_shards(photos):
    """ImageNet's archives may remain after unpacking."""
    (photos / "train" / "cat.tar").write_bytes(b"an archive of the cats")
    data = open_dataset(photos, True, False, 0, 16)
    assert data.labels == CLASSES
    assert str(data.left_out) == "left out: 1 beside the class folders"


@pytest.mark.parametrize(
    ("text", "names"),
    [("\ufeffcat\r\ndog\r\n\r\n", CLASSES), ("cat\x85 \u2028s\ndog", ("cat\x85 \u2028s", "dog"))],
)
def test_class_names_are_the_lines_of_classes_txt(photos, pattern, text, names):
    (photos / "shards" / "classes.txt").write_bytes(text.encode())
    assert shards(pattern).labels == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n\ndog\n", "classes.txt: line 2 is empty"),
        ("\ncat\ndog\n", "classes.txt: line 1 is empty"),
        ("cat\n", "names 1 class, but an image has class number 1"),
        (b"cat\n\xff\n", "classes.txt: cannot be read"),
    ],
)
def test_invalid_class_names_are_refused(photos, pattern, text, message):
    content = text if isinstance(text, bytes) else text.encode()
    (photos / "shards" / "classes.txt").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        shards(pattern)


def test_a_single_class_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\n")
    tarfile.open(tmp_path / "train.tar", "w").close()
    add(tmp_path / "train.tar", "a.png", b"x")
    add(tmp_path / "train.tar", "a.cls", b"0")
    with pytest.raises(DatasetError, match=r"classes.txt: names 1 class; need at least two"):
        shards(str(tmp_path / "train.tar"))


def test_missing_held_out_shards_are_an_error(photos, pattern):
    for path in (photos / "shards").glob("val*"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"there are no shards val-\*.tar to test on"):
        shards(pattern, train=False)


@pytest.mark.parametrize("name", ["broken", "zerstört"])
def test_a_broken_image_is_an_error_or_is_left_out(pattern, photos, name):
    path = photos / "shards" / "train-001.tar"
    add(path, f"{name}.png", b"no image")
    add(path, f"{name}.cls", b"0")
    index = int(np.flatnonzero(shards(pattern).bytes == len(b"no image"))[0])
    with pytest.raises(ImageError, match=f"train-001.tar: {name}.png: this is not an image file"):
        shards(pattern).batch([index], 0)
    images, targets, failed = shards(pattern, on_corrupt="skip").read([0, index], 0)
    assert len(images) == len(targets) == 1
    assert len(failed) == 1
    assert f"{name}.png" in failed[0]


def test_an_image_with_a_large_aspect_ratio_is_refused(pattern, photos):
    content = BytesIO()
    Image.new("L", (1, 3000)).save(content, "PNG")
    path = photos / "shards" / "train-002.tar"
    add(path, "long.png", content.getvalue())
    add(path, "long.cls", b"0")
    with pytest.raises(ImageError, match=r"train-002.tar: long.png: need one side .*, got 3000 x 1 pixels"):
        shards(pattern, augment=True).batch([8], 0)


def test_a_deleted_shard_is_an_error_or_its_images_are_left_out(pattern):
    strict, data = shards(pattern), shards(pattern, on_corrupt="skip")
    data.paths[0].unlink()
    with pytest.raises(ImageError, match=f"{data.paths[0]}: the shard cannot be read"):
        strict.batch([0], 0)
    images, _, failed = data.read([0, 7], 0)
    assert len(images) == 1
    assert failed == [f"{data.paths[0]}: the shard cannot be read (No such file or directory)"]


# ---------------------------------------------------------------------------------------------- the command


@pytest.mark.slow
def test_resume_after_interrupt_gives_the_same_weights_from_shards(pattern, tmp_path, capsys):
    plan = tmp_path / "plan.toml"
    stage = '[[stages]]\nkind = "classifier"\nepochs = 2\nlearning_rate = 0.01\n'
    plan.write_text(f'model = "small_vgg_half"\nbatch = 4\n{stage}')
    command = ["train", "--data", pattern, "--plan", str(plan), "--size", "28", "--device", "cpu"]
    assert cli.main([*command, "-o", str(tmp_path / "at-once")]) == 0
    resumed = [*command, "--workers", "1", "-o", str(tmp_path / "resumed"), "--resume"]
    assert stop_after_an_epoch(resumed) == 130
    assert cli.main(resumed) == 0
    files = [str(tmp_path / name / "model.safetensors") for name in ("at-once", "resumed")]
    one, other = (load_classifier(file).state_dict() for file in files)
    assert all(map(torch.equal, one.values(), other.values()))
    capsys.readouterr()
    assert cli.main(["eval", files[0], "--data", pattern, "--device", "cpu"]) == 0
    assert "small_vgg_half" in capsys.readouterr().out


def stop_after_an_epoch(command):
    """Run the command, and interrupt it when an epoch is written."""
    with pytest.MonkeyPatch.context() as patch:
        end = observers.Together.end

        def interrupted(self, epoch, model):
            end(self, epoch, model)
            raise KeyboardInterrupt

        patch.setattr(observers.Together, "end", interrupted)
        return cli.main(command)


def test_another_set_of_shards_has_another_fingerprint(pattern):
    known = fingerprint(open_dataset(pattern, True, False, 0))
    assert known["number of images"] == 8
    other = fingerprint(open_dataset(pattern.replace("002", "001"), True, False, 0))
    assert other["places in shards"] != known["places in shards"]


@pytest.mark.parametrize(
    ("name", "content"), [("one.png", b"a longer image"), ("0.json", b"moves what follows")]
)
def test_the_fingerprint_depends_on_offset_and_length_of_images(tmp_path, name, content):
    found = []
    for folder, more in ((tmp_path / "a", {}), (tmp_path / "b", {name: content})):
        folder.mkdir()
        (folder / "classes.txt").write_text("cat\ndog\n")
        tarfile.open(folder / "train.tar", "w").close()
        for member, bytes_ in {"0.json": b"", "one.png": b"image", "one.cls": b"1", **more}.items():
            add(folder / "train.tar", member, bytes_)
        found.append(fingerprint(shards(str(folder / "train.tar"))))
    assert {key for key in found[0] if found[0][key] != found[1][key]} == {"places in shards"}


def test_training_from_shards_needs_a_plan(pattern, tmp_path, capsys):
    assert cli.main(["train", "--data", pattern, "-o", str(tmp_path / "out")]) == 2
    assert "name one with --plan" in capsys.readouterr().err
