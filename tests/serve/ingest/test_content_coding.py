import gzip
import io
import tracemalloc
import zlib

import pytest
import zstandard

from tandem.serve.errors import InvalidRequestError, UnsupportedCodingError
from tandem.serve.ingest.content_coding import Unpacker

TEXT = b'{"text": "' + bytes(range(32, 127)) * 300 + b'"}'
PACK = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress, "identity": bytes}


def unpack(coding, data, size=100):
    unpacker = Unpacker(coding)
    pieces = [piece for at in range(0, len(data), size) for piece in unpacker.feed(data[at : at + size])]
    unpacker.finish()
    return b"".join(pieces)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "identity"])
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_a_body_comes_back_however_it_was_cut(coding, size):
    assert unpack(coding, PACK[coding](TEXT), size) == TEXT


@pytest.mark.parametrize("coding", ["", " GZip ", "x-gzip", "Identity"])
def test_names_of_codings(coding):
    packed = gzip.compress(TEXT) if "g" in coding.lower() else TEXT
    assert unpack(coding, packed) == TEXT


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("size", [1, 64, 1 << 20])
def test_streams_may_follow_each_other(coding, size):
    assert unpack(coding, PACK[coding](TEXT) + PACK[coding](b"") + PACK[coding](TEXT[:9]), size) == TEXT + TEXT[:9]


def test_a_zstd_frame_of_unknown_size_is_unpacked():
    target = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(target, closefd=False) as writer:
        for at in range(0, len(TEXT), 999):
            writer.write(TEXT[at : at + 999])
            writer.flush()
    assert unpack("zstd", target.getvalue()) == TEXT


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("spoil", [lambda d: d[:-3], lambda d: d[:5], lambda d: b"{}" + d, lambda d: d + b"more"])
def test_a_broken_body_is_refused(coding, spoil):
    with pytest.raises(InvalidRequestError, match=f"body: isn't valid {coding}"):
        unpack(coding, spoil(PACK[coding](TEXT)))


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "gzip;q=1", "\x00", "x" * 1000])
def test_other_codings_are_refused_by_name(coding):
    with pytest.raises(UnsupportedCodingError, match="gzip, zstd, deflate") as error:
        Unpacker(coding)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_a_bomb_is_unpacked_piece_by_piece(coding):
    bomb = PACK[coding](bytes(1 << 28))
    unpacker, num_bytes = Unpacker(coding), 0
    tracemalloc.start()
    for piece in unpacker.feed(bomb):
        num_bytes += len(piece)
        if num_bytes > 1 << 27:
            break
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 << 20


def test_a_zstd_window_that_http_does_not_allow_is_refused():
    settings = zstandard.ZstdCompressionParameters(window_log=25)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    with pytest.raises(InvalidRequestError, match="too much memory"):
        unpack("zstd", compressor.compress(bytes(1 << 20)) + compressor.flush())
