"""Bad input to the command line: one line that says what was wrong, exit code 2, and nothing written."""
import pytest
from refused import helps

from fsmerge_lite.recipes.commands import main

PAIR = "".join(f'[[originals]]\nfile = "{{folder}}/original"\nname = "{name}"\nfolder = "{{folder}}/good"\n'
               for name in ("one", "two"))
GO = '[run]\nchance = "go"\ndevice = "cpu"\n[calibration]\nimages = 2\naugmented = 0\n'
RECIPES = {  # name -> TOML
    "good": PAIR + GO + "[supernet]\nrank = 2\n",
    "rank": PAIR + GO + "[supernet]\nrank = 9\n",
    "zero": PAIR + "[supernet]\nrank = 0\n",
    "text": PAIR + '[training]\nlr = "1e-3"\n',
    "nan": PAIR + "[start]\nridge = nan\n",
    "entry": PAIR + "[trainig]\nsteps = 3\n",
    "one": '[[originals]]\nshipped = "digits"\n',
    "chance": PAIR + GO.replace('"go"', '"stop"'),
    "many": PAIR + GO.replace("images = 2", "images = 500"),
    "pictures": PAIR.replace("good", "broken") + GO.replace("images = 2", "images = 10"),
    "missing": PAIR.replace("/original", "/nowhere") + GO,
    "merged": PAIR.replace("/original", "/merged") + GO,
    "cut": PAIR.replace("/original", "/cut") + GO,
    "classes": PAIR.replace("good", "three") + GO,
    "taken": PAIR + GO.replace("device", 'out = "{folder}"\ndevice') + "[supernet]\nrank = 2\n",
    "not toml": "originals = [",
}
CASES = [  # the command, and words of what it says
    ("merge {folder}/none.toml", "there is no recipe"),
    ("merge {folder}", "there is no recipe"),
    ("merge {folder}/not_toml.toml", "is not TOML"),
    ("merge {folder}/zero.toml", "supernet.rank is 0, expected a whole number >= 1"),
    ("merge {folder}/text.toml", "training.lr is '1e-3', expected a number > 0"),
    ("merge {folder}/nan.toml", "start.ridge is nan, expected a number > 0"),
    ("merge {folder}/entry.toml", "a recipe has no entry 'trainig'; did you mean 'training'?"),
    ("merge {folder}/one.toml", "two or more tables [[originals]], one for each trained model; it has 1"),
    ("merge {folder}/rank.toml", "rank must be a whole number from 1 to 8, got 9"),
    ("merge {folder}/chance.toml --dry-run", "on its own task, and chance is 50 %"),
    ("merge {folder}/many.toml --dry-run", "500 were asked for"),
    ("merge {folder}/pictures.toml --dry-run", "3.jpg (cannot identify image file"),
    ("merge {folder}/missing.toml --dry-run", "originals 1: "),
    ("merge {folder}/merged.toml --dry-run", "holds 'fsmerge_lite.Merged', expected 'fsmerge_lite.Original'"),
    ("merge {folder}/cut.toml --dry-run", "it was cut short"),
    ("merge {folder}/classes.toml --dry-run", "its head has 2 outputs, but its task one has 3 classes"),
    ("merge {folder}/taken.toml", "holds the model of another run, which this one would replace; give another"),
    ("merge {folder}/good.toml --out {folder}/file/x", "cannot be written"),
    ("merge {folder}/good.toml --out {folder}/file", "cannot be written"),
    ("merge {folder}/good.toml --out /proc/x", "/proc/x/records.json cannot be written"),
    ("merge {folder}/good.toml --jobs 0", "jobs must be >= 1, got 0"),
    ("merge {folder}/good.toml --jobs two", "argument --jobs: invalid int value: 'two'"),
    ("merge {folder}/good.toml --seed -1", "run.seeds is [-1], expected a list of one or more whole numbers >= 0"),
    ("merge {folder}/good.toml --device gpu", "argument --device: invalid choice: 'gpu'"),
    ("merge", "the following arguments are required: recipe"),
    ("evaluate {folder}/no.safetensors {folder}/good.toml", "no.safetensors is missing"),
    ("evaluate {folder}/original.safetensors {folder}/good.toml", "holds 'fsmerge_lite.Original', expected"),
    ("evaluate {folder}/edited.safetensors {folder}/good.toml", "SHA-256 differs"),
    ("evaluate {folder}/merged.safetensors {folder}/none.toml", "there is no recipe"),
    ("evaluate {folder}/merged.safetensors {folder}/good.toml", "head 2 has 3 outputs, but its task two has 2 classes"),
    ("export {folder}/no.safetensors", "no.safetensors is missing"),
    ("export {folder}/run.pt", "a saved model is one .safetensors file, which"),
    ("export {folder}/net.safetensors", "holds 'fsmerge_lite.SuperNet', expected 'fsmerge_lite.Merged'"),
    ("export {folder}/merged.safetensors --out {folder}/file", "file cannot be written ("),
    ("train-original --out x", "one of the arguments --folder --torchvision --texts --task is required"),
    ("train-original --task digits", "the following arguments are required: --out"),
    ("train-original --task cats --out x", "argument --task: invalid choice: 'cats'"),
    ("train-original --task digits --folder a --out x", "not allowed with argument --task"),
    ("train-original --folder {folder}/no --out x", "is no folder; expected"),
    ("train-original --folder {folder}/good/cat --out x", "pictures without classes; expected"),
    ("train-original --folder {folder}/broken --out x", "3.jpg (cannot identify image file"),
    ("train-original --torchvision mnist --out x", "(did you mean 'MNIST'?)"),
    ("train-original --torchvision MNIST --root {folder} --out x", "torchvision cannot read MNIST in"),
    ("train-original --task digits --size 4 --out x", "size must be a whole number >= 8, got 4"),
    ("train-original --task digits --size 0 --out x", "size must be a whole number >= 8, got 0"),
    ("train-original --task digits --size 30 --out x", "size must be a multiple of 4 for a small model, got 30"),
    ("train-original --task digits --steps 0 --out x", "steps must be a whole number >= 1, got 0"),
    ("train-original --task digits --lr nan --out x", "lr must be a number > 0, got nan"),
    ("train-original --task digits --lr -1 --out x", "lr must be a number > 0, got -1.0"),
    ("train-original --task digits --batch-size 0 --out x", "batch_size must be a whole number >= 1, got 0"),
    ("train-original --task digits --seed -1 --out x", "seed must be a whole number >= 0, got -1"),
    ("train-original --task digits --timm vit_tny_patch16_224 --out x", "did you mean 'vit_tiny_patch16_224'?"),
    ("train-original --task digits --timm resnet18 --out x", "timm's VisionTransformer, got ResNet"),
    ("train-original --task digits --out {folder}/file/x", "cannot be written"),
    ("train-original --task digits --out {folder}/taken", "taken.safetensors cannot be written (it is a folder)"),
    ("bench nothing", "argument name: invalid choice: 'nothing'"),
    ("bench lowdata --small --jobs 0", "jobs must be a whole number >= 1, got 0"),
    ("bench lowdata --small --jobs 1 --out {folder}/file", "cannot be written"),
    ("originals cats", "no embedded task 'cats'; there are digits, letters, shapes, textures"),
    ("originals digits --out {folder}/file", "cannot be written"),
    ("tour --tasks digits", "two or more tables [[originals]]"),
    ("tour --tasks digits digits", "originals 2 is the same as originals 1"),
    ("tour --tasks digits cats", "argument --tasks: invalid choice: 'cats'"),
    ("tour --images 0", "calibration.images is 0, expected a whole number >= 1"),
    ("tour --steps 0", "training.steps is 0, expected a whole number >= 1"),
    ("tour --rank -1", "supernet.rank is -1, expected a whole number >= 1"),
    ("tour --augmented 1.5", "argument --augmented: invalid int value: '1.5'"),
    ("tour --out {folder}/file", "cannot be written"),
    ("doctor now", "unrecognized arguments: now"),
    ("", "the following arguments are required: command"),
    ("merj", "invalid choice: 'merj'"),
]


@pytest.fixture(scope="module")
def recipes(g):
    """The given folder with the recipes in it, and a folder of three classes."""
    for name, text in RECIPES.items():
        (g.folder / f"{name.replace(' ', '_')}.toml").write_text(text.format(folder=g.folder))
    return g


@pytest.mark.parametrize(("command", "words"), CASES, ids=[command or "nothing" for command, _ in CASES])
def test_a_bad_command_is_refused_with_one_line(command, words, recipes, here, capsys):
    before = recipes.state()
    try:
        code = main([part.format(folder=recipes.folder) for part in command.split()])
    except SystemExit as stopped:  # as argparse ends
        code = stopped.code
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and said.startswith("error: "), said
    helps(said, words)
    assert not list(here.rglob("*")) and recipes.state() == before
