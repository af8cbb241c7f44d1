"""Pictures and the models trained on them: embedded tasks, folders, torchvision's datasets, shipped originals."""
