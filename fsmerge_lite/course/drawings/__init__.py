"""The drawings of the lessons, one file a subject. Pure functions: the same arguments give the same figure."""
