import matplotlib
import pytest
import torch
from hypothesis import settings

matplotlib.use("Agg")  # not through the environment, which the notebooks' kernels would inherit
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
