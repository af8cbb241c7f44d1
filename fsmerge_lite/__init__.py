"""fsmerge_lite: FS-Merge (Foldable SuperNets, arXiv 2410.01483) as a compact library.

Models of different initializations and tasks in, one model of the size of one out.
"""
from .baselines import align, alone, average, distill, ensemble, regmean, slerp
from .evaluation import Path, Scores, Table, evaluate, path
from .fitting import History
from .layers import SuperConv2d, SuperLinear, SuperTokens
from .machine import doctor
from .matrices import Merge, Unmerge
from .models import MLP, Ensemble, Merged, Original, build, describe, load_merged, load_original, vit
from .originals import load_originals, train_original
from .permutations import alignment, permuted
from .subspace import fit_subspaces
from .supernet import SuperNet
from .tasks import Calibration, Task, calibration, folder_task, task, torchvision_task
from .training import train_global, train_local

__all__ = [
    "MLP",
    "Calibration",
    "Ensemble",
    "History",
    "Merge",
    "Merged",
    "Original",
    "Path",
    "Scores",
    "SuperConv2d",
    "SuperLinear",
    "SuperNet",
    "SuperTokens",
    "Table",
    "Task",
    "Unmerge",
    "align",
    "alignment",
    "alone",
    "average",
    "build",
    "calibration",
    "describe",
    "distill",
    "doctor",
    "ensemble",
    "evaluate",
    "fit_subspaces",
    "folder_task",
    "load_merged",
    "load_original",
    "load_originals",
    "path",
    "permuted",
    "regmean",
    "slerp",
    "task",
    "torchvision_task",
    "train_global",
    "train_local",
    "train_original",
    "vit",
]
__version__ = "0.1.0"
