"""Streamed domains: the images and labels of the files read whole, in a bounded part of the disk, resumed exactly."""

import gzip
import io
import itertools
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets.table import embed_table_storage
from fsspec.implementations.memory import MemoryFile
from PIL import Image

from metaalign_hf import DomainConfig, UserError, load_domain, load_domain_pair
from metaalign_hf.cli import run
from metaalign_hf.data import batch_indices, disk_cache, even_batch_indices, tar_blocks, training_stream
from metaalign_hf.data.bad_images import read_replacing
from metaalign_hf.data.blocks import Blocks
from metaalign_hf.data.detection_readers import read_detection_domain
from metaalign_hf.models import build_image_processor
from tests.data.test_domain_pair import make_dataset, one_line
from tests.data.test_sources import webdataset
from tests.helpers.runs import TINY, assert_same_run, run_until_checkpoint
from tests.helpers.squares import SHAPES, write_squares


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """Where blocks are kept."""
    monkeypatch.setattr(disk_cache, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def held(home: Path) -> list[int]:
    """Sizes of the blocks that are kept."""
    return [file.stat().st_size for file in home.glob("metaalign_hf/*/*") if not file.name.startswith("lock-")]


def write_arrow(data: datasets.Dataset, path: Path, rows: int, kind=pa.ipc.new_stream, **options) -> None:
    """Batches of so many rows, as `datasets` writes them (a stream) or with a table at the end (a file)."""
    table = embed_table_storage(data.with_format("arrow")[:])
    options = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as file, kind(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)


@pytest.fixture
def made(tmp_path) -> datasets.Dataset:
    """Twelve images in row groups of three, in two files; a file of test images beside them."""
    data = make_dataset(tmp_path / "disk", ["cat", "dog", "eel"])
    for number in range(2):
        data.shard(2, number, contiguous=True).to_parquet(tmp_path / f"data/train-{number}.parquet", batch_size=3)
    data.select(range(3)).to_parquet(tmp_path / "data/test-0.parquet")
    return data


def streamed(path: object, test: object, **more) -> DomainConfig:
    return DomainConfig(kind="parquet", path=str(path), test_path=str(test), streaming=True, **more)


def test_a_streamed_domain_is_the_domain(made, tmp_path, home):
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "data"), "/stream", recursive=True)
    places = [tmp_path / "data", "memory://stream", f"file://{tmp_path}/data"]
    configs = [streamed(f"{place}/train-*.parquet", f"{place}/test-0.parquet") for place in places]
    configs.append(DomainConfig(kind="dataset", path=str(tmp_path / "data"), test_split="test", streaming=True))
    for config in configs:
        whole = load_domain(replace(config, streaming=False)) if "memory" not in config.path else None
        found = load_domain(config)
        assert found.labels == ["cat", "dog", "eel"] and found.train.blocks.sizes == (3, 3, 3, 3)
        assert (len(found.train), len(found.test)) == (12, 3)
        for view, other in ((found.train, whole and whole.train), (found.test, whole and whole.test)):
            assert all(int(view[i][0, 0, 0]) == 10 * i for i in range(len(view)))
            assert view.labels == tuple(i % 3 for i in range(len(view)))
            assert other is None or all(torch.equal(view[i], other[i]) for i in range(len(view)))
    assert len(held(home)) > 4


def test_batches_of_arrow_are_blocks(made, tmp_path, home):
    data = tmp_path / "arrow"
    data.mkdir()
    write_arrow(made.select(range(7)), data / "train-0.arrow", 3)
    write_arrow(made.select(range(7, 12)), data / "train-1.arrow", 4, pa.ipc.new_file, compression="zstd")
    write_arrow(made.select(range(3)), data / "test-0.arrow", 2)
    fsspec.filesystem("memory").put(str(data), "/arrows", recursive=True)
    for place in (data, "memory://arrows"):
        train, test = f"{place}/train-*.arrow", f"{place}/test-0.arrow"
        found = load_domain(DomainConfig(kind="arrow", path=train, test_path=test, streaming=True))
        assert found.labels == ["cat", "dog", "eel"] and found.train.blocks.sizes == (3, 3, 1, 4, 1)
        assert (len(found.train), len(found.test)) == (12, 3)
        for view in (found.train, found.test):
            assert all(int(view[i][0, 0, 0]) == 10 * i for i in range(len(view)))
            assert view.labels == tuple(i % 3 for i in range(len(view)))
    whole = (data / "train-0.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.arrow").write_bytes(b"words" * 9)
    for name, words in (("cut", "it is cut short: it has .* bytes"), ("no", "it is not in Arrow's stream or file")):
        with pytest.raises(UserError, match=rf"domain {name}\.arrow: .* cannot be read: {words}") as caught:
            load_domain(DomainConfig(kind="arrow", path=f"{tmp_path}/{name}.arrow", test_path=test, streaming=True))
        one_line(caught)


def test_only_what_is_asked_for_is_read_of_a_batch(tmp_path, monkeypatch):
    shades = np.random.default_rng(0).integers(256, size=(20, 96, 96, 3), dtype=np.uint8)
    rows = {"image": [Image.fromarray(pixels) for pixels in shades], "label": ["a", "b"] * 10}
    write_arrow(datasets.Dataset.from_dict(rows), tmp_path / "a.arrow", 5)
    fsspec.filesystem("memory").put(str(tmp_path / "a.arrow"), "/lazy/a.arrow")
    read = []
    whole = MemoryFile.read
    monkeypatch.setattr(MemoryFile, "read", lambda file, n=-1: read.append(found := whole(file, n)) or found)
    place = "memory://lazy/a.arrow"
    found = load_domain(DomainConfig(kind="arrow", path=place, test_path=place, streaming=True))
    size = (tmp_path / "a.arrow").stat().st_size
    assert found.train.labels == (0, 1) * 10 and sum(map(len, read)) < size / 4
    read.clear()
    assert torch.equal(found.train[7], torch.from_numpy(shades[7]).permute(2, 0, 1))
    assert size / 4 < sum(map(len, read)) < size / 2, "one batch of four"


def test_tars_are_read_by_stretches_of_rows(tmp_path, home, monkeypatch):
    monkeypatch.setattr(tar_blocks, "_MOST_ROWS", 3)
    rows = [(10 * i, ["cat", "dog", "eel"][i % 3]) for i in range(12)]
    data = tmp_path / "tars"
    data.mkdir()
    for name, kept in (("train-0", rows[:7]), ("train-1", rows[7:]), ("test", rows[:3])):
        webdataset(data / f"{name}.tar", kept, "txt")
    fsspec.filesystem("memory").put(str(data), "/tars", recursive=True)
    for place in (data, "memory://tars"):
        train, test = f"{place}/train-*.tar", f"{place}/test.tar"
        config = DomainConfig(kind="webdataset", path=train, test_path=test, label_column="txt", streaming=True)
        found = load_domain(config)
        assert found.labels == ["cat", "dog", "eel"] and found.train.blocks.sizes == (3, 3, 1, 3, 2)
        for view in (found.train, found.test):
            assert all(int(view[i][0, 0, 0]) == 10 * i for i in range(len(view)))
            assert view.labels == tuple(i % 3 for i in range(len(view)))
        for file in home.glob("metaalign_hf/*/*"):
            file.unlink()  # another process has cleared the cache
        assert int(found.train[11][0, 0, 0]) == 110
    webdataset(tmp_path / "numbers.tar", [(10 * i, str(i % 3)) for i in range(6)])
    (tmp_path / "names.txt").write_text("cat\ndog\neel\n")
    config = DomainConfig.parse(f"webdataset:{tmp_path}/numbers.tar")
    config = replace(config, test_path=config.path, labels_file=str(tmp_path / "names.txt"), streaming=True)
    found = load_domain(config)
    assert found.labels == ["cat", "dog", "eel"] and found.train.labels == (0, 1, 2, 0, 1, 2)


def odd_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def test_what_is_wrong_with_a_tar_is_told(tmp_path):
    webdataset(tmp_path / "a.tar", [(10 * i, "cat") for i in range(3)], "txt")
    whole = (tmp_path / "a.tar").read_bytes()
    image = whole[512 : 512 + int(whole[124:135], 8)]
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    (tmp_path / "short.tar").write_bytes(whole[: 512 * 8])
    head = bytearray(whole)
    head[512 * 8 + 10] ^= 255
    (tmp_path / "head.tar").write_bytes(head)
    (tmp_path / "zip.tar").write_bytes(gzip.compress(whole))
    odd_tar(tmp_path / "twice.tar", [("0.png", image), ("0.png", image)])
    odd_tar(tmp_path / "none.tar", [("0.txt", b"cat"), ("1.txt", b"dog")])
    odd_tar(tmp_path / "word.tar", [("0.png", image), ("0.cls", b"cat")])
    odd_tar(tmp_path / "bare.tar", [("0.png", image), ("0.txt", b"cat"), ("1.png", image)])
    for name, words in (
        ("cut", r"cut\.tar is no sound tar after 001\.png: unexpected end of data"),
        ("short", r"short\.tar is cut short after 001\.txt; make or copy it anew"),
        ("head", r"head\.tar is damaged after 001\.txt; make or copy it anew"),
        ("zip", r"zip\.tar is no sound tar at its beginning: .*; streaming wants tars that are not compressed"),
        ("twice", r"twice\.tar has two members 0\.png"),
        ("none", r"none\.tar holds no images as NAME\.jpg, NAME\.png or the like"),
        ("word", r"word\.tar: 0\.cls cannot be read as cls \(.*\); names .* in members NAME\.txt, with label_column"),
        ("bare", r"domain bare\.tar: row 1 \(bare\.tar, 1\) has no txt"),
    ):
        place, column = str(tmp_path / f"{name}.tar"), "label" if name == "word" else "txt"
        with pytest.raises(UserError, match=words) as caught:
            load_domain(
                DomainConfig(kind="webdataset", path=place, test_path=place, label_column=column, streaming=True)
            )
        one_line(caught)
    members = [("0.png", image), ("0.txt", b"cat"), ("1.txt", b"dog"), ("2.png", b"odd"), ("2.txt", b"dog")]
    place = str(odd_tar(tmp_path / "holes.tar", members))
    images = load_domain(
        DomainConfig(kind="webdataset", path=place, test_path=place, label_column="txt", streaming=True)
    ).train
    kept, _, bad = read_replacing(images, [0, 1, 2])
    assert kept == [0, 0, 0] and [index for index, _ in bad] == [1, 2, 2]
    assert bad[0][1] == "holes.tar: row 1 (holes.tar, 1), column png: unreadable image (there is none)"
    assert bad[1][1].startswith("holes.tar: row 2 (holes.tar, 2), column png: unreadable image (cannot identify")


def test_rows_of_a_domain_and_classes_of_both_are_kept(made, tmp_path):
    file = tmp_path / "data/train-*.parquet"
    south = streamed(file, file, domain_column="site", domain="south")
    two = made.filter(lambda row: row["label"] != 2)
    names = [["cat", "dog"][label] for label in two["label"]]
    two = two.remove_columns("label").add_column("label", names)
    two.to_parquet(tmp_path / "two.parquet")
    target = f"parquet:{tmp_path}/two.parquet"
    pair = load_domain_pair(south, target, "shared")
    assert pair.labels == ["cat", "dog"]
    assert [int(pair.source_train[i][0, 0, 0]) // 10 for i in range(4)] == [6, 7, 9, 10]
    assert pair.source_train.labels == (0, 1, 0, 1) and pair.source_train.blocks.sizes == (2, 2)
    assert pair.target_train.blocks is None


def test_objects_are_streamed_where_the_sizes_are_known(tmp_path):
    box = datasets.List(datasets.Value("float32"), length=4)
    objects = {"bbox": datasets.List(box), "category": datasets.List(datasets.ClassLabel(names=["cat", "dog"]))}
    rows = {
        "image": [Image.fromarray(np.full((20, 30, 3), i, np.uint8)) for i in range(3)],
        "objects": [{"bbox": [[2, 3, 10, 8]], "category": [1]}] * 3,
        "height": [20] * 3,
        "width": [30] * 3,
    }
    features = {"image": datasets.Image(), "objects": objects}
    features |= {key: datasets.Value("int32") for key in ("height", "width")}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    data.to_parquet(tmp_path / "a.parquet")
    data.remove_columns("height").to_parquet(tmp_path / "b.parquet")
    found = read_detection_domain(streamed(tmp_path / "a.parquet", tmp_path / "a.parquet"))
    assert found.labels == ["cat", "dog"] and found.train.objects[2].boxes.tolist() == [[2, 3, 12, 11]]
    assert int(found.train[2][0, 0, 0]) == 2 and found.train.blocks.sizes == (3,)
    with pytest.raises(UserError, match=r"domain b\.parquet: streaming needs columns height and width"):
        read_detection_domain(streamed(tmp_path / "b.parquet", tmp_path / "b.parquet"))


def test_no_more_than_was_allowed_stays_on_the_disk(tmp_path, home):
    shades = np.random.default_rng(0).integers(256, size=(40, 32, 32, 3), dtype=np.uint8)
    data = datasets.Dataset.from_dict({"image": [Image.fromarray(pixels) for pixels in shades]})
    data.to_parquet(tmp_path / "a.parquet", batch_size=4)
    images = load_domain(streamed(tmp_path / "a.parquet", tmp_path / "a.parquet", streaming_gigabytes=5e-5)).train
    for _ in range(2):
        for index in range(40):
            assert torch.equal(images[index], torch.from_numpy(shades[index]).permute(2, 0, 1))
            assert sum(held(home)) <= 50_000
    assert len(held(home)) == 3, "a block has about 13 kB"


def seen(size: int, blocks: Blocks, batches: int, batch_size: int = 10) -> list[int]:
    return [i for batch in range(batches) for i in batch_indices(size, batch_size, 0, batch, blocks)]


def test_orders_show_all_images_and_have_few_blocks_open():
    blocks = Blocks((10,) * 100, 200)
    order = seen(1000, blocks, 200)
    passes = order[:1000], order[1000:]
    assert passes[0] != passes[1]
    for found in passes:
        assert sorted(found) == list(range(1000))
        opened = {block: [p for p, i in enumerate(found) if i // 10 == block] for block in range(100)}
        spans = [(max(places) - min(places)) for places in opened.values()]
        # About 20 blocks of 10 are open; those whose places go over the end are open at its beginning, too.
        assert sorted(spans)[75] < 260
        mixed = [len({i // 10 for i in found[start : start + 100]}) for start in range(0, 1000, 100)]
        assert min(mixed) > 15, "neighbours are of many blocks"
    for late in (7, 150):
        assert batch_indices(1000, 10, 0, late, blocks) == order[10 * late : 10 * late + 10]


def test_a_large_buffer_is_a_uniform_order():
    """How often an image of each block comes first among 6, in blocks of unequal sizes."""
    counts = np.zeros(6)
    for seed in range(3000):
        counts[batch_indices(6, 1, seed, 0, Blocks((1, 3, 2), 6))[0]] += 1
    assert (np.abs(counts / 3000 - 1 / 6) < 4 * np.sqrt(5 / 36 / 3000)).all()


def test_joined_domains_are_drawn_evenly(made, tmp_path):
    file = tmp_path / "data/train-*.parquet"
    a = load_domain(streamed(file, file)).train
    joined = a.join(a.subset(range(5)), load_domain("uci_digits").train.subset(range(4)))
    assert joined.blocks.sizes == (3, 3, 3, 3, 3, 2, 1, 1, 1, 1)
    assert [part.sizes for part in joined.blocks.parts(joined.parts)] == [(3,) * 4, (3, 2), (1,) * 4]
    order = [i for batch in range(20) for i in even_batch_indices(joined.parts, 6, 0, batch, joined.blocks)]
    for number, (start, end) in enumerate(((0, 12), (12, 17), (17, 21))):
        own = order[number::3]
        assert all(start <= i < end for i in own) and sorted(own[: end - start]) == list(range(start, end))


def test_workers_and_processes_change_nothing(made, tmp_path):
    file = tmp_path / "data/train-*.parquet"
    images, processor = load_domain(streamed(file, file)).train, build_image_processor(8, 8, [0.5] * 3, [0.5] * 3)

    def take(**options):
        return list(itertools.islice(training_stream(images, processor, seed=3, **options), 4))

    whole, by_workers = take(batch_size=4), take(batch_size=4, num_workers=2)
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(whole, by_workers, strict=True))
    parts = [take(batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    for batch, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(batch["labels"], torch.cat([half["labels"] for half in halves]))


def squares(root: Path) -> list[str]:
    """The words of a run on the squares: half of the source in parquet and half in arrow, the target in tars."""
    folders = write_squares(root)

    def rows(domain: str, start: int = 0, step: int = 1) -> list[tuple[Path, str]]:
        return [(file, shape) for shape in SHAPES for file in sorted((folders / domain / shape).iterdir())][start::step]

    def table(kept: list[tuple[Path, str]]) -> datasets.Dataset:
        columns = {"image": [str(file) for file, _ in kept], "label": [shape for _, shape in kept]}
        data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        return data.cast_column("label", datasets.ClassLabel(names=[*SHAPES]))

    table(rows("source", 0, 2)).to_parquet(root / "source.parquet", batch_size=4)
    write_arrow(table(rows("source", 1, 2)), root / "source.arrow", 4)
    for domain in ("target", "tests"):
        members = [(f"{n:04}{file.suffix}", file.read_bytes()) for n, (file, _) in enumerate(rows(domain))]
        texts = [(f"{n:04}.txt", shape.encode()) for n, (_, shape) in enumerate(rows(domain))]
        odd_tar(root / f"{domain}.tar", sorted([*members, *texts]))
    more = {"streaming": True, "shuffle_buffer": 8}
    sources = [
        {"kind": kind, "path": f"{root}/source.{kind}", "test_path": f"{root}/source.{kind}", **more}
        for kind in ("parquet", "arrow")
    ]
    target = {"kind": "webdataset", "path": f"{root}/target.tar", "test_path": f"{root}/tests.tar", **more}
    target["label_column"] = "txt"
    words = ["--data.source", json.dumps(sources), "--data.target", json.dumps(target)]
    return ["train", "--config", TINY, *words]


def test_a_killed_run_goes_on_as_if_it_never_stopped(tmp_path, capsys):
    words = [*squares(tmp_path), "--training.checkpoint_every", "3", "--training.resume", "auto"]
    assert run([*words, "--training.output_dir", str(tmp_path / "whole")]) == 0
    assert "source.parquet + source.arrow -> target.tar" in capsys.readouterr().out
    killed = [*words, "--training.output_dir", str(tmp_path / "killed")]
    run_until_checkpoint(killed)
    # Another machine has none of the blocks.
    for file in (tmp_path / "home").glob("metaalign_hf/*/*"):
        file.unlink()
    assert run(killed) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_what_cannot_be_streamed_is_told(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    data = tmp_path / "data"
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    (data / "empty").mkdir()
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/train.csv").write_text("image,label\na.png,cat\n")
    saved = DomainConfig(kind="dataset", path=str(tmp_path / "disk"), streaming=True)
    held_out = replace(streamed(data / "train-0.parquet", None), test_path=None)
    wrong = [
        (
            saved,
            r"domain disk: .*/disk was saved by save_to_disk, and is read from where it lies anyway; drop",
        ),
        (replace(saved, path=str(tmp_path / "csv")), r"domain csv: .* this data set is stored as csv; drop streaming"),
        (held_out, r"domain train-0\.parquet: streaming needs test images of its own, .* set test_path"),
        (streamed(data / "no.parquet", data), r"domain no\.parquet: .*/no\.parquet does not exist$"),
        (streamed(data / "empty", data), r"domain empty: .*/empty holds no file ending in \.parquet"),
        (streamed(tmp_path / "bad.parquet", data), r"domain bad\.parquet: .*bad\.parquet cannot be read: "),
        (streamed("s3://b/a.parquet", data), r"domain a\.parquet: .* s3:// .*: pip install 'metaalign-hf\[remote\]'$"),
        (streamed("zip://a.parquet::s3://b/c.zip", data), r"to read s3:// .*: pip install 'metaalign-hf\[remote\]'$"),
        (replace(streamed("s3://b/a.parquet", data), streaming=False), r"to read s3:// .* 'metaalign-hf\[remote\]'$"),
        (streamed("abfs://b@c/a.parquet", data), r"domain a\.parquet: to read abfs:// .*: pip install 'adlfs'$"),
        (streamed("https://b.org/a.parquet", data), r"a\.parquet: .* https:// .* install 'metaalign-hf\[remote\]'"),
        (streamed("nope://a.parquet", data), r"domain a\.parquet: nope://a\.parquet: Protocol not known: nope"),
    ]
    for config, words in wrong:
        with pytest.raises(UserError, match=words) as caught:
            load_domain(config)
        one_line(caught)
    with pytest.raises(UserError, match=r"shuffle_buffer is 5: with streaming false nothing reads it"):
        DomainConfig(kind="parquet", path="a.parquet", shuffle_buffer=5)
    with pytest.raises(UserError, match=r"streaming is True: a domain of kind list does not read it"):
        DomainConfig(kind="list", path="a.txt", streaming=True)
