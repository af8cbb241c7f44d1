"""Files are there as a whole or not at all, whenever a process is killed."""
import multiprocessing
import random
import time

import torch

import fsmerge_lite as fsm


def saving_for_ever(merged, path):
    for value in range(1, 10**9):
        merged.outputs[0].data.fill_(value)
        merged.save(path, value=value)


def test_a_save_that_is_killed_leaves_a_model_that_loads(tmp_path):
    vit = fsm.vit(dim=32, depth=2, num_heads=2, patch_size=8, img_size=16).eval()
    merged = fsm.Merged(vit, [torch.zeros(32, 32)], [torch.nn.Linear(32, 3)], ["task"])
    merged.save(tmp_path / "m", value=0)
    delays, seen = random.Random(0), set()
    for _ in range(25):
        process = multiprocessing.get_context("fork").Process(target=saving_for_ever, args=(merged, tmp_path / "m"))
        before, end = (tmp_path / "m.safetensors").stat().st_mtime_ns, time.monotonic() + 20
        process.start()
        while (tmp_path / "m.safetensors").stat().st_mtime_ns == before and time.monotonic() < end:
            time.sleep(0.001)  # until it saves
        time.sleep(delays.uniform(0, 0.2))
        process.kill()
        process.join()
        output = fsm.load_merged(tmp_path / "m").outputs[0]
        assert (output == output[0, 0]).all()
        seen.add(output[0, 0].item())
    assert len(seen) > 3, "the kills came before anything was saved"
