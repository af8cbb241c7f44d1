"""What only the lessons use: figures and drawings, widgets, checks of claims, exercises."""
