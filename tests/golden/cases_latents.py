"""The authors' chunks of latents, read as they lie."""

import json
import tempfile
from pathlib import Path

import numpy as np

from pom_jax.data.tar_latents import TarLatents
from tests.golden.case import Case, Check, Findings, LeftOut


def chunks(case: Case) -> Findings:
    """Every sample of int8 and float16 chunks, drawn with the recorded noise."""
    call = case.meta["call"]
    for kind in ("int8", "fp16"):
        with tempfile.TemporaryDirectory() as folder:
            rows = []
            for number, count in enumerate(call["chunks"]):
                name = f"chunk_{number}.tar"
                (Path(folder) / name).write_bytes(case.arrays[f"in/{kind}/tar_chunk_{number}"].tobytes())
                # Paths are as they were when the authors' tool wrote them.
                row = {"filename": f"/elsewhere/{name}", "count": count}
                rows.append({**row, "quantization_scale": call["quantization_scale"]})
            (Path(folder) / "index.json").write_text(json.dumps(rows))
            source = TarLatents(folder)
            samples = [source[index] for index in range(len(source))]
        noise = case.arrays[f"in/{kind}/noise"].transpose(0, 2, 3, 1)
        mean, std = (
            np.array([getattr(sample, name) for sample in samples]) * np.float32(source.fields[name].scale)
            for name in ("mean", "std")
        )
        ours = (mean + std * noise).transpose(0, 3, 1, 2)
        if kind == "fp16":
            # What went in comes out; their reader divides it by the scale, which was not in it.
            official = case.arrays["in/fp16/mean"] + case.arrays["in/fp16/std"] * case.arrays["in/fp16/noise"]
            yield Check("in/fp16", ours, official, 2**-11)
            ours = ours / np.float32(call["quantization_scale"])
        yield Check(f"out/{kind}/sample", ours, case.arrays[f"out/{kind}/sample"], case.tolerance("out"))
        labels = [sample.label for sample in samples]
        yield Check(f"out/{kind}/label", labels, case.arrays[f"out/{kind}/label"], 0.0)
    yield LeftOut("out/sampler_*", "theirs is one order for ever, ours another one every epoch")
