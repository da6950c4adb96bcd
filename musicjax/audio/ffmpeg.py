"""Decode what libsndfile cannot, through the ffmpeg program, as a stream."""

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from musicjax.errors import AudioError

_READ_FRAMES = 1 << 18
_AU_FLOAT32 = 6  # encoding number of 32-bit float in a Sun AU header


class Decoder:
    """Runs ffmpeg on one file and reads float32 frames (n, C) from its pipe.

    ffmpeg is asked for Sun AU, whose small header tells rate and channels before the samples, so
    that no second program has to be asked first. Only local files may be opened: a playlist posing
    as audio cannot make it fetch an address.
    """

    def __init__(self, path: Path, name: str):
        self._name = name
        program = shutil.which("ffmpeg")
        if program is None:
            raise AudioError(
                f"{name} is not WAV, FLAC, OGG or MP3, and ffmpeg, which reads other formats, is "
                "not installed; install ffmpeg or convert the file."
            )
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        command = [
            program, "-nostdin", "-v", "error", "-protocol_whitelist", "file",
            "-i", f"file:{path.absolute()}", "-map", "0:a:0",
            "-c:a", "pcm_f32be", "-f", "au", "pipe:1",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors
        )
        try:
            self.sample_rate, self.channels = self._read_header()
        except BaseException:
            self.close()
            raise
        self.format = (path.suffix.lstrip(".") or "ffmpeg").upper()
        self.num_frames: int | None = None  # containers are not to be trusted; count instead

    def read(self) -> Iterator[np.ndarray]:
        width = 4 * self.channels
        while data := self._read_exactly(_READ_FRAMES * width):
            whole = len(data) // width * width
            values = np.frombuffer(data[:whole], ">f4").astype(np.float32)
            yield values.reshape(-1, self.channels)
        if self._process.wait() != 0:
            raise AudioError(self._sentence())

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _read_header(self) -> tuple[int, int]:
        header = self._read_exactly(24)
        if len(header) < 24 or header[:4] != b".snd":
            self._process.wait()
            raise AudioError(self._sentence())
        offset, _, encoding, sample_rate, channels = struct.unpack(">5I", header[4:])
        if encoding != _AU_FLOAT32:
            raise AudioError(f"{self._name} was decoded to an unknown layout; update ffmpeg.")
        self._read_exactly(offset - 24)
        return sample_rate, channels

    def _read_exactly(self, size: int) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.read(size)

    def _sentence(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        if any("matches no streams" in line for line in lines):
            return f"{self._name} has no audio track; give a file with sound."
        reason = lines[-1].split(": ")[-1].strip(". ") if lines else "no reason given"
        return (
            f"{self._name} is not audio that can be decoded (ffmpeg: {reason}); check that it "
            "plays, or convert it to WAV or FLAC."
        )
