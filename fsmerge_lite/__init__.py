"""fsmerge_lite: FS-Merge (arXiv 2410.01483). Models of different initializations and tasks in, one of their size out.

The method stands in this folder. Read it in this order: `matrices` (M and U), `layers` (k frozen layers between them,
unfolded and folded), `architectures` (the graph of spaces, and who has one), `models` (what goes in and comes out),
`supernet`, `training` (what is reconstructed), `start` (the closed-form start). Imports run one way: `engine` (what the
method runs on), method, `compare`, `tasks` (pictures, shipped originals), `bench`, `recipes` (own models), `course`.
"""
from .architectures import build, describe
from .architectures.text import TextEncoder
from .architectures.vit import vit
from .bench.machine import doctor
from .compare.alignment import alignment, permuted
from .compare.baselines import Ensemble, align, alone, average, distill, ensemble, regmean, slerp, train_folded
from .compare.evaluation import Path, Scores, Table, evaluate, path
from .compare.rotation import align_orthogonal
from .engine.fitting import History
from .engine.images import Calibration
from .engine.modules import MLP
from .layers import SuperConv2d, SuperEmbedding, SuperLinear, SuperTokens
from .matrices import Merge, Unmerge
from .models import Merged, Original, load_merged
from .recipes.export import export
from .start import fit_subspaces
from .supernet import SuperNet, load_supernet
from .tasks.calibration import calibration
from .tasks.embedded import task
from .tasks.originals import load_original, load_originals, train_on, train_original
from .tasks.pictures import folder_task, inspect_folder, torchvision_task, unlabeled_task
from .tasks.task import Task
from .tasks.texts import text_task
from .training import train_global, train_local

__all__ = [  # noqa: RUF022 (by room)
    "SuperNet", "Original", "Merged", "load_merged", "load_supernet", "train_global", "train_local",
    "fit_subspaces", "Calibration", "History", "Merge", "Unmerge", "SuperLinear", "SuperConv2d", "SuperTokens",
    "SuperEmbedding", "MLP", "TextEncoder", "vit", "describe", "build", "average", "slerp", "regmean", "align",
    "alignment", "permuted", "align_orthogonal", "distill", "train_folded", "ensemble", "Ensemble", "alone",
    "evaluate", "Scores", "Table", "path", "Path", "Task", "task", "calibration", "folder_task", "inspect_folder",
    "torchvision_task", "unlabeled_task", "text_task", "load_original", "load_originals", "train_on",
    "train_original", "export", "doctor"]
__version__ = "0.2.0"
