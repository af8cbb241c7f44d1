"""fsmerge_lite: FS-Merge (Foldable SuperNets, arXiv 2410.01483) as a compact library.

Models of different initializations and tasks in, one model of the size of one out.
"""
from .baselines import average, distill, ensemble
from .evaluation import Scores, Table, evaluate
from .layers import Merge, SuperConv2d, SuperLinear, SuperToken, Unmerge
from .machine import doctor
from .models import MLP, Ensemble, Merged, Original, build, describe, load_merged, load_original, vit
from .originals import load_originals, train_original
from .supernet import SuperNet
from .tasks import Calibration, Task, calibration, folder_task, task, torchvision_task
from .training import History, train_global

__all__ = [
    "MLP",
    "Calibration",
    "Ensemble",
    "History",
    "Merge",
    "Merged",
    "Original",
    "Scores",
    "SuperConv2d",
    "SuperLinear",
    "SuperNet",
    "SuperToken",
    "Table",
    "Task",
    "Unmerge",
    "average",
    "build",
    "calibration",
    "describe",
    "distill",
    "doctor",
    "ensemble",
    "evaluate",
    "folder_task",
    "load_merged",
    "load_original",
    "load_originals",
    "task",
    "torchvision_task",
    "train_global",
    "train_original",
    "vit",
]
__version__ = "0.1.0"
