"""The end of a stored body is checked, whatever its content and however it was compressed."""

import io
import json
import random

import pytest
import zstandard

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.errors import ArtifactError
from tandem.cluster.payloads.compressed import compressor, decompressed
from tandem.cluster.payloads.json_splitting import CHUNK_BYTES
from tandem.cluster.payloads.reading import read_groups
from tandem.cluster.payloads.rows import read_rows

CONTENTS = {
    "empty": b"",
    "a byte": b"x",
    "zeros": bytes(3 * CHUNK_BYTES),
    "random": random.Random(0).randbytes(2 * CHUNK_BYTES + 7),
    "text": b"".join(b'{"a": %d}' % (k * k) for k in range(50_000)),
}
WAYS = {
    "at once, with a checksum": lambda content: compressor().compress(content),
    "at once": zstandard.compress,
    "piece by piece": lambda content: (c := compressor(1).compressobj()).compress(content) + c.flush(),
    "without its size": lambda content: zstandard.ZstdCompressor(write_content_size=False).compress(content),
}


def read(packed, **options):
    return b"".join(decompressed(io.BytesIO(packed), "payloads/a", **options))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("content", CONTENTS)
def test_whole_bodies_are_read_and_all_others_are_damaged(content, way):
    packed = WAYS[way](CONTENTS[content])
    assert read(packed) == CONTENTS[content]
    size = len(packed)
    for cut in sorted({*range(max(0, size - 12), size), size // 2, 0, 3, 5}):
        if cut < size:
            with pytest.raises(ArtifactError, match=f"payloads/a is damaged: it ends too early, after {cut} bytes"):
                read(packed[:cut])
    for more in (b"\0", packed, packed[: size // 2], b"x" * CHUNK_BYTES):
        with pytest.raises(ArtifactError, match="payloads/a is damaged"):
            read(packed + more)


def test_a_changed_byte_is_noticed_wherever_it_is():
    packed = bytearray(compressor().compress(CONTENTS["text"][:2000]))
    for place in range(len(packed)):
        packed[place] ^= 1
        try:
            content = read(bytes(packed))
        except ArtifactError as error:
            assert "payloads/a is damaged" in str(error)
        else:
            assert content == CONTENTS["text"][:2000], place  # a bit of the frame's head that means nothing
        packed[place] ^= 1


def test_a_body_that_arrives_may_end_anywhere():
    packed = compressor().compress(CONTENTS["random"])
    assert CONTENTS["random"].startswith(read(packed[: len(packed) - 2], is_arriving=True))


def test_what_follows_the_json_is_part_of_the_body(tmp_path):
    """The blocks after the one with the end of the JSON, the end of the last one, and the checksum."""
    artifacts = Artifacts(str(tmp_path))
    packed = compressor().compress(json.dumps({"trajectory_groups": []}).encode() + b" " * CHUNK_BYTES)
    artifacts.write_blob("payloads/a", packed)
    assert list(read_groups(artifacts, "payloads/a")) == []
    for damaged in (packed[:-1], packed[:-4], packed[:-6], packed + b"\0", packed[:-1] + bytes([packed[-1] ^ 1])):
        artifacts.write_blob("payloads/a", damaged)
        with pytest.raises(ArtifactError, match=r"payloads/a is damaged.* \d+ "):
            list(read_groups(artifacts, "payloads/a"))


def test_lines_that_are_lost_are_noticed(tmp_path):
    """Without a fault in the lines before, and not as a fault of the row that is cut."""
    artifacts = Artifacts(str(tmp_path))
    row = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}).encode()
    stream = compressor().compressobj()
    first = stream.compress(row + b"\n") + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    whole = first + stream.compress(row + b"\n") + stream.flush()
    artifacts.write_blob("datasets/a", whole)
    assert len(list(read_rows(artifacts, "datasets/a"))) == 2
    for size in (len(first), len(first) + 3, len(whole) - 1):
        artifacts.write_blob("datasets/a", whole[:size])
        with pytest.raises(ArtifactError, match=f"datasets/a is damaged: it ends too early, after {size} bytes"):
            list(read_rows(artifacts, "datasets/a"))
